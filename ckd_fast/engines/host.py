"""Engines that crop and decode on the host, by `reference/track.py`; the network runs on any device.

`ReferenceEngine` runs the plain PyTorch network, which every other engine is compared with. `CompiledEngine` runs the
same network through torch.compile.
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ckd_fast.errors import EngineError, InputError
from ckd_fast.frames import RawPair, register
from ckd_fast.pending import Pending
from ckd_fast.reference.boxes import hann_window
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.model import OnStep, ignore_step
from ckd_fast.reference.preprocess import normalise
from ckd_fast.reference.track import Template, View, locate, look, make_template
from ckd_fast.types import Box
from ckd_fast.weights import LoadedModel

from .base import Described, Engine, Found, Search, Target

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class HostTarget(Target):
    """A target of a host engine."""

    template: Template


@dataclass(frozen=True)
class NetworkRun:
    """What the network gave, in float32 on the host, and how long it ran."""

    maps: HeadMaps
    ms: float


class HostEngine(Engine):
    """An engine that differs from the others of its kind only in how it runs the network."""

    def __init__(self, model: Described, device: torch.device, dtype: torch.dtype, note: str = "") -> None:
        super().__init__(model, device, dtype, note)
        self._window = hann_window(model.config.search_grid)

    @abstractmethod
    def _embed(self, images: Tensor) -> Tensor:
        """Normalised template crops [2, B, 3, h, w] -> tokens [2, B, T, C], where and how the engine wants them."""

    @abstractmethod
    def _begin(self, view: View, on_step: OnStep | None) -> Pending[NetworkRun]:
        """Start the network on a view; it may finish before this returns. `on_step` gets the crops and all steps."""

    def make_target(self, frames: RawPair, box: Box) -> Target:
        pair = register(frames)
        return HostTarget(self._owner, make_template(self._embed, self.config, (pair.rgb, pair.tir), box))

    def start(self, searches: Sequence[Search], frames: RawPair, on_step: OnStep | None = None) -> Pending[list[Found]]:
        begin = time.perf_counter()
        self.check(searches)
        templates = [search.target.template for search in searches if isinstance(search.target, HostTarget)]
        boxes = [search.box for search in searches if search.box is not None]
        pair = register(frames)
        registered = time.perf_counter()
        view = look(self.config, templates, boxes, [search.factor for search in searches], (pair.rgb, pair.tir))
        cropped = time.perf_counter()
        network = self._begin(view, on_step)

        def wait() -> list[Found]:
            run = network.result()
            begin_decoding = time.perf_counter()
            try:
                predictions = locate(run.maps, self._window, view)
            except FloatingPointError as error:
                raise self.not_finite() from error
            if on_step is not None:
                on_step("decode", torch.tensor([target.box for target in predictions], dtype=torch.float64))
            times = registered - begin, cropped - registered, run.ms / 1e3, time.perf_counter() - begin_decoding
            return [Found(p.box, p.score, p.cell, *(seconds * 1e3 for seconds in times)) for p in predictions]

        return Pending(wait)


class ReferenceEngine(HostEngine):
    """Plain PyTorch, on any device."""

    name = "reference"

    def __init__(self, model: LoadedModel, device: torch.device, dtype: torch.dtype, note: str = "") -> None:
        super().__init__(model, device, dtype, note)
        self._student = model.student().to(device, dtype)

    def _embed(self, images: Tensor) -> Tensor:
        with self._lock:
            return self._student.embed_template(images.to(self.device, self.dtype))

    @torch.inference_mode()
    def _begin(self, view: View, on_step: OnStep | None) -> Pending[NetworkRun]:
        begin = time.perf_counter()
        search = normalise(view.crops, view.present).to(self.device, self.dtype)
        present = None if view.present is None else view.present.to(self.device)
        if on_step is not None:
            on_step("crop", search)
        with self._lock:
            maps = self._maps(view.template, search, view.deciding, present, on_step)
            maps = HeadMaps(maps.score.float().cpu(), maps.size.float().cpu(), maps.offset.float().cpu())
        return Pending.of(NetworkRun(maps, (time.perf_counter() - begin) * 1e3))

    @torch.inference_mode()
    def run_network(self, template_images: Tensor, search_images: Tensor) -> HeadMaps:
        deciding = torch.ones(
            template_images.shape[1], self.config.template_tokens, dtype=torch.bool, device=self.device
        )
        template = self._embed(template_images)
        with self._lock:
            return self._maps(template, search_images, deciding, None, None)

    def _maps(
        self, template: Tensor, search: Tensor, deciding: Tensor, present: Tensor | None, on_step: OnStep | None
    ) -> HeadMaps:
        """Maps of B targets on the engine's device, see `Student.forward`."""
        maps: HeadMaps = self._student(template, search, deciding, present, on_step or ignore_step).maps
        return maps


class CompiledEngine(ReferenceEngine):
    """torch.compile, with one static shape per power of two of targets; the shape for one is compiled when built."""

    name = "compiled"
    most_targets = 64

    def __init__(
        self, model: LoadedModel, device: torch.device, dtype: torch.dtype, note: str = "", mode: str = "default"
    ) -> None:
        super().__init__(model, device, dtype, note)
        self._compiled = torch.compile(self._forward, dynamic=False, mode=mode)
        self._warm_up()

    def _forward(
        self, template: Tensor, search: Tensor, deciding: Tensor, present: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        maps = self._student(template, search, deciding, present).maps
        return maps.score, maps.size, maps.offset

    def _warm_up(self) -> None:
        """Compile now: a missing compiler is reported here, and the first frame is not late."""
        config = self.config
        template = torch.zeros(2, 1, 3, config.template_size, config.template_size, device=self.device)
        search = torch.zeros(2, 1, 3, config.search_size, config.search_size, device=self.device, dtype=self.dtype)
        log.info("compiling the network for %s; this takes up to a minute or two", self.device)
        start = time.perf_counter()
        try:
            self.run_network(template, search)
        except Exception as error:
            # Compilers raise many kinds of errors. Nothing has run yet, so each means that this machine cannot compile.
            lines = str(error).strip().splitlines() or [type(error).__name__]
            need = "a C++ compiler (on Debian: apt-get install g++)" if self.device.type == "cpu" else "Triton and gcc"
            raise EngineError(
                f"engine 'compiled' cannot compile on {self.device}: {lines[0]}. It needs {need}; "
                "engine 'reference' needs none"
            ) from error
        log.info("compiled in %.0f s", time.perf_counter() - start)

    def start(self, searches: Sequence[Search], frames: RawPair, on_step: OnStep | None = None) -> Pending[list[Found]]:
        if on_step is not None:
            raise InputError("engine 'compiled' cannot be observed step by step: use 'reference'")
        return super().start(searches, frames)

    def _maps(
        self,
        template: Tensor,
        search: Tensor,
        deciding: Tensor,
        present: Tensor | None,
        on_step: OnStep | None,  # noqa: ARG002 - `start` refuses it
    ) -> HeadMaps:
        targets = template.shape[1]
        if present is None:  # always a tensor: a frame without one modality must not compile anew
            present = torch.ones(2, targets, dtype=torch.bool, device=self.device)
        # torch compiles anew for every number of targets, and only a few times: fill up to a power of two.
        filled = torch.arange(1 << (targets - 1).bit_length(), device=self.device).clamp(max=targets - 1)
        if len(filled) > targets:
            template, search, present = (tensor[:, filled] for tensor in (template, search, present))
            deciding = deciding[filled]
        # Under CUDA graphs the next call overwrites the maps; `_begin` copies them to the host before it returns.
        score, size, offset = (values[:targets] for values in self._compiled(template, search, deciding, present))
        return HeadMaps(score=score, size=size, offset=offset)
