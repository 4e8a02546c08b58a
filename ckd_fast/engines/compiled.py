"""The reference network through torch.compile."""

from __future__ import annotations

import logging
import time

import torch
from torch import Tensor

from ckd_fast.errors import EngineError, InputError
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.model import OnStep, ignore_step
from ckd_fast.weights import LoadedModel

from .base import HostEngine

log = logging.getLogger(__name__)


class CompiledEngine(HostEngine):
    """torch.compile, one static shape per power of two of targets; compiled when built, for one."""

    name = "compiled"
    most_targets = 64

    def __init__(
        self, model: LoadedModel, device: torch.device, dtype: torch.dtype, note: str = "", mode: str = "default"
    ) -> None:
        super().__init__(model, device, dtype, note)
        self._student = model.student().to(device, dtype)
        self._network = torch.compile(self._forward, dynamic=False, mode=mode)
        self._warm_up()

    def _forward(
        self, template: Tensor, search: Tensor, mask: Tensor, present: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        maps = self._student(template, search, mask, present).maps
        return maps.score, maps.size, maps.offset

    @torch.inference_mode()
    def _warm_up(self) -> None:
        """Compile now, so that a missing compiler is told here and the first frame is not late."""
        config = self.config
        images = torch.zeros(2, 1, 3, config.template_size, config.template_size)
        search = torch.zeros(2, 1, 3, config.search_size, config.search_size)
        mask = torch.zeros(1, config.template_tokens, dtype=torch.bool, device=self.device)
        mask[0, 0] = True
        log.info("compiling the network for %s; this takes up to a minute or two", self.device)
        start = time.perf_counter()
        try:
            self._maps(self._embed(self._to_device(images)), self._to_device(search), mask, None, ignore_step)
        except Exception as error:
            # Whatever compiling raises is told with its own words; nothing was run yet.
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            need = "a C++ compiler (on Debian: apt-get install g++)" if self.device.type == "cpu" else "Triton and gcc"
            raise EngineError(
                f"engine 'compiled' cannot compile on {self.device}: {reason}. It needs {need}; "
                "engine 'reference' needs none"
            ) from error
        log.info("compiled in %.0f s", time.perf_counter() - start)

    def _embed(self, images: Tensor) -> Tensor:
        return self._student.embed_template(images)

    def _maps(
        self, template: Tensor, search: Tensor, mask: Tensor, present: Tensor | None, on_step: OnStep
    ) -> HeadMaps:
        if on_step is not ignore_step:
            raise InputError("engine 'compiled' cannot be observed step by step: use 'reference'")
        if present is None:  # always a tensor: a frame without one modality must not compile anew
            present = torch.ones(2, template.shape[1], dtype=torch.bool, device=self.device)
        targets = template.shape[1]
        # Every number of targets is a compilation of its own and torch makes few of them: the next power of two serves.
        lanes = torch.arange(1 << (targets - 1).bit_length(), device=self.device).clamp(max=targets - 1)
        if len(lanes) > targets:
            template, search, present = (tensor[:, lanes] for tensor in (template, search, present))
            mask = mask[lanes]
        maps = self._network(template, search, mask, present)
        # Under graphs the next call overwrites these tensors; `find` copies them to the host before it returns.
        score, size, offset = (values[:targets] for values in maps)
        return HeadMaps(score=score, size=size, offset=offset)
