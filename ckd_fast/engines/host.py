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
from itertools import pairwise

import torch
from torch import Tensor

from ckd_fast.errors import EngineError, InputError
from ckd_fast.frames import RawPair, register
from ckd_fast.pending import Pending
from ckd_fast.reference.boxes import hann_window
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.model import OnStep, ignore_step
from ckd_fast.reference.track import Template, make_template, track_frame
from ckd_fast.types import Box
from ckd_fast.weights import LoadedModel

from .base import Engine, Found, Search, Target

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class HostTarget(Target):
    """A target of a host engine."""

    template: Template


class HostEngine(Engine):
    """An engine that differs from the others of its kind only in how it runs the network."""

    def __init__(self, model: LoadedModel, device: torch.device, dtype: torch.dtype, note: str = "") -> None:
        super().__init__(model, device, dtype, note)
        self._window = hann_window(model.config.search_grid)

    @abstractmethod
    def _embed(self, images: Tensor) -> Tensor:
        """Template crops [2, B, 3, h, w] -> tokens [2, B, T, C] on the engine's device and in its precision."""

    @abstractmethod
    def _maps(
        self, template: Tensor, search: Tensor, deciding: Tensor, present: Tensor | None, on_step: OnStep | None
    ) -> HeadMaps:
        """Maps of B targets, see `reference.track.Network`, but on any device and in any precision."""

    def make_target(self, frames: RawPair, box: Box) -> Target:
        pair = register(frames)
        with self._lock:
            return HostTarget(self._owner, make_template(self._embed, self.config, (pair.rgb, pair.tir), box))

    def start(self, searches: Sequence[Search], frames: RawPair, on_step: OnStep | None = None) -> Pending[list[Found]]:
        """Find the targets now: there is nothing to overlap."""
        moments = [time.perf_counter()]
        self.check(searches)
        targets = [search.target for search in searches if isinstance(search.target, HostTarget)]
        templates, factors = [target.template for target in targets], [search.factor for search in searches]
        boxes = [search.box for search in searches if search.box is not None]
        pair = register(frames)
        moments.append(time.perf_counter())

        def network(template: Tensor, search: Tensor, deciding: Tensor, present: Tensor | None) -> HeadMaps:
            moments.append(time.perf_counter())
            with self._lock:
                maps = self._maps(template, search, deciding, present, on_step)
                maps = HeadMaps(maps.score.float().cpu(), maps.size.float().cpu(), maps.offset.float().cpu())
            moments.append(time.perf_counter())
            return maps

        try:
            predictions = track_frame(
                network, self.config, self._window, templates, boxes, factors, (pair.rgb, pair.tir), on_step
            )
        except FloatingPointError as error:
            raise self.not_finite() from error
        moments.append(time.perf_counter())
        times = [(after - before) * 1e3 for before, after in pairwise(moments)]  # prepare, crop, network, decode
        return Pending.of([Found(p.box, p.score, p.cell, *times) for p in predictions])

    @torch.inference_mode()
    def run_network(self, template_images: Tensor, search_images: Tensor) -> HeadMaps:
        deciding = torch.ones(
            template_images.shape[1], self.config.template_tokens, dtype=torch.bool, device=self.device
        )
        with self._lock:
            return self._maps(self._embed(template_images), search_images, deciding, None, None)


class ReferenceEngine(HostEngine):
    """Plain PyTorch, on any device."""

    name = "reference"

    def __init__(self, model: LoadedModel, device: torch.device, dtype: torch.dtype, note: str = "") -> None:
        super().__init__(model, device, dtype, note)
        self._student = model.student().to(device, dtype)

    def _embed(self, images: Tensor) -> Tensor:
        return self._student.embed_template(images.to(self.device, self.dtype))

    def _maps(
        self, template: Tensor, search: Tensor, deciding: Tensor, present: Tensor | None, on_step: OnStep | None
    ) -> HeadMaps:
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
        # Under CUDA graphs the next call overwrites the maps; `start` copies them to the host before it returns.
        score, size, offset = (values[:targets] for values in self._compiled(template, search, deciding, present))
        return HeadMaps(score=score, size=size, offset=offset)
