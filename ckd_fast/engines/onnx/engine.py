"""An exported ONNX file in ONNX Runtime, on any of its providers; crops and boxes on the host."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ckd_fast.engines.base import Found, Search
from ckd_fast.engines.host import HostEngine, NetworkRun
from ckd_fast.errors import CorruptWeightsError, EngineError, InputError
from ckd_fast.frames import RawPair
from ckd_fast.pending import Pending
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.model import OnStep
from ckd_fast.reference.preprocess import PIXEL_MEAN, PIXEL_STD, normalise
from ckd_fast.reference.track import View
from ckd_fast.weights import ExportedModel
from ckd_fast.weights.exported import most_targets, search_ports

from .session import choose_providers, open_session, run_session

log = logging.getLogger(__name__)

MAPS = ("score_map", "size_map", "offset_map")


class OnnxEngine(HostEngine):
    """ONNX Runtime with the files of an export.

    Args:
        model: the files.
        device: "auto", "cpu", "cuda", "cuda:N" or the name of a provider, see `choose_providers`.
        threads: of the CPU; None: as many as torch uses.
    """

    name = "onnx"

    def __init__(self, model: ExportedModel, device: str = "auto", *, threads: int | None = None) -> None:
        super().__init__(model, torch.device("cpu"), model.dtype)
        self.most_targets = model.targets or most_targets(model.config)
        self._model = model
        providers = choose_providers(device)
        threads = threads or torch.get_num_threads()
        paths = (model.path, model.template_path)
        reason = ""
        try:
            self._search, self._template = (open_session(path, providers, threads) for path in paths)
        except EngineError as error:
            if providers.must:
                raise
            reason = f" ({error})"
            self._search, self._template = (open_session(path, choose_providers("cpu"), threads) for path in paths)
        self.provider: str = self._search.get_providers()[0]
        if self.provider != providers.names[0]:
            self.note = f"auto: {providers.names[0]} does not load here"
            log.warning("engine 'onnx' runs on %s: %s does not load here%s", self.provider, providers.names[0], reason)

    def __str__(self) -> str:
        """As of every engine, with the provider in place of the device."""
        note = f" ({self.note})" if self.note else ""
        return f"{self.name} on {self.provider}, {str(self.dtype).removeprefix('torch.')}{note}"

    def start(self, searches: Sequence[Search], frames: RawPair, on_step: OnStep | None = None) -> Pending[list[Found]]:
        if on_step is not None:
            raise InputError("engine 'onnx' cannot be observed step by step: use 'reference'")
        return super().start(searches, frames)

    @torch.inference_mode()
    def run_network(self, template_images: Tensor, search_images: Tensor) -> HeadMaps:
        deciding = torch.ones(template_images.shape[1], self.config.template_tokens, dtype=torch.bool)
        return self._maps(self._embed(template_images), self._taken(search_images), deciding, None)

    @torch.inference_mode()
    def _embed(self, images: Tensor) -> Tensor:
        crops = self._taken(images).split(1, dim=1)
        tokens = [run_session(self._template, ["template"], {"crops": crop.numpy()})[0] for crop in crops]
        shape = (2, 1, self.config.template_tokens, self.config.dim)
        return torch.cat([torch.from_numpy(self._expected(value, shape)) for value in tokens], dim=1)

    def _begin(self, view: View, on_step: OnStep | None) -> Pending[NetworkRun]:  # noqa: ARG002 - `start` refuses it
        """Run the network now; it has threads of its own for one run, not for several."""
        begin = time.perf_counter()
        crops = view.crops if self._model.crops == "uint8" else normalise(view.crops, view.present)
        maps = self._maps(view.template, crops, view.deciding, view.present)
        return Pending.of(NetworkRun(maps, (time.perf_counter() - begin) * 1e3))

    def _maps(self, template: Tensor, crops: Tensor, deciding: Tensor, present: Tensor | None) -> HeadMaps:
        """Maps of B targets; `crops` as the file takes them."""
        count = template.shape[1]
        held = self._model.targets or count
        if present is None:
            present = torch.ones(2, count, dtype=torch.bool)
        if count < held:  # fill up with copies of the last target
            filled = torch.arange(held).clamp(max=count - 1)
            template, crops, present = (value[:, filled] for value in (template, crops, present))
            deciding = deciding[filled]
        inputs = {"template": template, "search": crops, "deciding": deciding, "present": present}
        arrays = {name: value.contiguous().numpy() for name, value in inputs.items()}
        with self._lock:
            values = run_session(self._search, MAPS, arrays)
        ports = search_ports(self.config, self._model.crops, held).outputs
        shapes = {port.name: port.shape for port in ports}
        score, size, offset = (
            torch.from_numpy(self._expected(value, shapes[name])[:count])
            for name, value in zip(MAPS, values, strict=True)
        )
        return HeadMaps(score=score, size=size, offset=offset)

    def _taken(self, images: Tensor) -> Tensor:
        """Normalised crops [2, B, 3, h, w] as the file takes them."""
        images = images.float().contiguous()
        if self._model.crops == "normalised":
            return images
        mean, std = (torch.tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
        pixels = ((images * std + mean) * 255.0).round().clamp(0, 255).byte()
        return pixels.movedim(2, -1).contiguous()  # [2, B, h, w, 3]

    def _expected(self, value: NDArray[np.generic], shape: tuple[int | str, ...]) -> NDArray[np.generic]:
        """The value, if it has the shape that the file announced."""
        if value.shape != shape:
            raise CorruptWeightsError(f"{self._model.path}: its graph gives shape {value.shape}, expected {shape}")
        return value
