"""The reference network, eager: what every other engine is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.model import OnStep
from ckd_fast.weights import LoadedModel

from .base import HostEngine


class ReferenceEngine(HostEngine):
    """Plain PyTorch on any device."""

    name = "reference"

    def __init__(self, model: LoadedModel, device: torch.device, dtype: torch.dtype, note: str = "") -> None:
        super().__init__(model, device, dtype, note)
        self._student = model.student().to(device, dtype)

    def _embed(self, images: Tensor) -> Tensor:
        return self._student.embed_template(images)

    def _maps(
        self, template: Tensor, search: Tensor, mask: Tensor, present: Tensor | None, on_step: OnStep
    ) -> HeadMaps:
        maps: HeadMaps = self._student(template, search, mask, present, on_step).maps
        return maps
