"""What an engine is: from frames and boxes to boxes, with the weights inside and the targets outside.

Weights (and on a GPU graphs and buffers) belong to the engine. What belongs to one target is a `Slot`, which the
tracker keeps, so any number of trackers share one engine. Calls are serialised by the engine's lock.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ckd_fast.errors import EngineError
from ckd_fast.frames import FramePair, RawPair, register
from ckd_fast.reference.boxes import clip_box, find_peak, hann_window, to_frame
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.elimination import template_mask
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.model import OnStep, ignore_step
from ckd_fast.reference.preprocess import Crop, box_in_crop, crop, crop_window, normalise
from ckd_fast.types import Box
from ckd_fast.weights import LoadedModel

NOT_CALIBRATED = 0.2  # threshold of a lost target for weights that bring none


@dataclass(frozen=True)
class Slot:
    """What an engine needs to know of one target.

    Attributes:
        template: embedded template tokens [2, 1, T, C].
        mask: template tokens that decide what is dropped [1, T].
    """

    template: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Search:
    """Where to look for one target.

    Attributes:
        slot: the target.
        box: where it was last; None: where the engine's previous search of this slot ended, whose result the caller
            may not know yet. Only for engines that `carry`.
        factor: side of the search crop, in multiples of sqrt(box area); with box None it is the model's, or wider
            after a lost one by the two values below.
        lost_threshold: a score below it makes the next search without a box wider.
        lost_scale: by how much.
    """

    slot: Slot
    box: Box | None
    factor: float
    lost_threshold: float = 0.0
    lost_scale: float = 1.0


@dataclass(frozen=True)
class Found:
    """One target in one frame.

    Attributes:
        box: in the frame, clipped.
        score: at the chosen cell, before the window.
        cell: row-major index of the cell.
        prepare_ms, crop_ms, network_ms, decode_ms: where the time went, over all targets of the call.
    """

    box: Box
    score: float
    cell: int
    prepare_ms: float
    crop_ms: float
    network_ms: float
    decode_ms: float


class Pending(ABC):
    """A search that was started and may not have ended."""

    @abstractmethod
    def result(self) -> list[Found]:
        """Wait for it; every call gives the same answer, or raises the same error."""


class Finished(Pending):
    """The search of an engine that has nothing to overlap."""

    def __init__(self, found: list[Found]) -> None:
        self._found = found

    def result(self) -> list[Found]:
        """What was found."""
        return self._found


def step_names(config: ModelConfig) -> tuple[str, ...]:
    """The steps of one frame, in order; every engine that can be observed reports them under these names.

    An engine leaves out a step that it fuses into another one. `attention` is the block's first half for the tokens
    that stay.
    """
    names = ["crop", "patch_embed"]
    for block in range(config.depth):
        if config.eliminates_at(block):
            names += [f"block{block}.scores", f"block{block}.eliminate"]
        names += [f"block{block}.attention", f"block{block}.mlp"]
    return (*names, "norm", "head.score", "head.size", "head.offset", "decode")


class Engine(ABC):
    """Runs the network for any number of targets."""

    name: str

    def __init__(self, model: LoadedModel, device: torch.device, dtype: torch.dtype, note: str = "") -> None:
        self.config = model.config
        # A score below it counts as lost where the tracker's configuration does not say.
        self.lost_threshold = NOT_CALIBRATED if model.lost_threshold is None else model.lost_threshold
        self.device = device
        self.dtype = dtype
        self.note = note
        self._lock = threading.Lock()
        self._window = hann_window(model.config.search_grid)

    def __str__(self) -> str:
        """Name, device, precision, and why it was chosen where that was not the caller's choice."""
        return f"{self.name} on {self.device}, {str(self.dtype).removeprefix('torch.')}" + (
            f" ({self.note})" if self.note else ""
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"

    carries = False  # whether a search may leave its box out
    most_targets: int | None = None  # in one call; None: any number

    @abstractmethod
    def remember(self, frames: RawPair, box: Box) -> Slot:
        """Embed the template of a new target; both modalities must be there."""

    @abstractmethod
    def find(self, searches: Sequence[Search], frames: RawPair, on_step: OnStep = ignore_step) -> list[Found]:
        """Find every target in one pair of frames.

        Args:
            searches: one per target.
            frames: the pair; a missing modality is shown as the mean image and has no vote in eliminations.
            on_step: called with the name and the value of every step, see `step_names`.
        """

    def start(self, searches: Sequence[Search], frames: RawPair) -> Pending:
        """As `find`, for engines that can go on while the caller does something else; the others find at once."""
        return Finished(self.find(searches, frames))

    @abstractmethod
    def run_network(self, template_images: Tensor, search_images: Tensor) -> HeadMaps:
        """The network alone, for measuring: normalised crops [2, B, 3, ., .] on the device to maps on the device.

        The template is embedded anew, as the authors' measurement does, and all template tokens decide.
        """

    def not_finite(self) -> EngineError:
        """The error of a result that is no number."""
        return EngineError(
            f"the network's result is not finite on engine {self}: the weights overflow in this precision; "
            "try dtype='bfloat16' or 'float32', and check the weights"
        )


class HostEngine(Engine):
    """An engine whose network runs on any device, while crops and boxes are made on the host."""

    @abstractmethod
    def _embed(self, images: Tensor) -> Tensor:
        """Template crops [2, B, 3, h, w] -> tokens [2, B, T, C]."""

    @abstractmethod
    def _maps(
        self, template: Tensor, search: Tensor, mask: Tensor, present: Tensor | None, on_step: OnStep
    ) -> HeadMaps:
        """Tokens [2, B, T, C] and search crops [2, B, 3, H, W] -> maps of B targets, on any device."""

    @torch.inference_mode()
    def remember(self, frames: RawPair, box: Box) -> Slot:
        """See `Engine`."""
        config = self.config
        crops = _crop_pair(register(frames), box, config.template_factor, config.template_size)
        images = self._to_device(_images([crops], config.template_size))
        mask = deciding_tokens(config, box).to(self.device)
        with self._lock:
            return Slot(self._embed(images), mask)

    @torch.inference_mode()
    def find(self, searches: Sequence[Search], frames: RawPair, on_step: OnStep = ignore_step) -> list[Found]:
        """See `Engine`."""
        config = self.config
        begin = time.perf_counter()
        pair = register(frames)
        start = time.perf_counter()
        boxes = [_known(search) for search in searches]
        crops = [
            _crop_pair(pair, box, search.factor, config.search_size)
            for box, search in zip(boxes, searches, strict=True)
        ]
        search_images = self._to_device(_images(crops, config.search_size))  # [2, B, 3, H, W]
        on_step("crop", search_images)
        present = None
        if pair.rgb is None or pair.tir is None:
            here = torch.tensor([[pair.rgb is not None], [pair.tir is not None]])
            present = here.expand(2, len(searches)).to(self.device)
        template = torch.cat([search.slot.template for search in searches], dim=1)
        mask = torch.cat([search.slot.mask for search in searches])
        cropped = time.perf_counter()
        with self._lock:
            maps = self._maps(template, search_images, mask, present, on_step)
            maps = HeadMaps(*(value.float().cpu() for value in (maps.score, maps.size, maps.offset)))
        ran = time.perf_counter()
        peak = find_peak(maps, self._window)
        if not (torch.isfinite(peak.boxes_cxcywh).all() and torch.isfinite(peak.score).all()):
            raise self.not_finite()
        located = []
        for index, both in enumerate(crops):
            factor = next(c.resize_factor for c in both if c is not None)
            mapped = to_frame(peak.boxes_cxcywh[index], boxes[index], factor, config.search_size)
            located.append(clip_box(mapped, *pair.size))
        on_step("decode", torch.tensor(located, dtype=torch.float64))
        done = time.perf_counter()
        times = ((start - begin) * 1e3, (cropped - start) * 1e3, (ran - cropped) * 1e3, (done - ran) * 1e3)
        scores, cells = peak.score.tolist(), peak.cell.tolist()
        return [Found(box, score, cell, *times) for box, score, cell in zip(located, scores, cells, strict=True)]

    @torch.inference_mode()
    def run_network(self, template_images: Tensor, search_images: Tensor) -> HeadMaps:
        """See `Engine`."""
        mask = torch.ones(template_images.shape[1], self.config.template_tokens, dtype=torch.bool, device=self.device)
        with self._lock:
            return self._maps(self._embed(template_images), search_images, mask, None, ignore_step)

    def _to_device(self, images: Tensor) -> Tensor:
        return images.to(self.device, self.dtype)


def deciding_tokens(config: ModelConfig, box: Box) -> Tensor:
    """The mask of template tokens that decide what is dropped, for a target with this box at its start [1, T]."""
    boxes = None
    if config.template_range == "GT_BOX":
        factor = config.template_size / crop_window(box, config.template_factor).side
        boxes = torch.tensor([box_in_crop(box, box, factor, config.template_size)])
    return template_mask(config, boxes)


def _known(search: Search) -> Box:
    if search.box is None:
        raise ValueError("this engine keeps no boxes: every search needs one")
    return search.box


def _crop_pair(frames: FramePair, box: Box, factor: float, size: int) -> tuple[Crop | None, Crop | None]:
    """Both modalities around the same box."""
    rgb, tir = (None if frame is None else crop(frame, box, factor, size) for frame in (frames.rgb, frames.tir))
    return rgb, tir


def _images(crops: Sequence[tuple[Crop | None, Crop | None]], size: int) -> Tensor:
    """Normalised crops [2, B, 3, size, size]; a missing modality is the mean image, which normalises to zero."""
    images = torch.zeros(2, len(crops), 3, size, size)
    for modality in range(2):
        shown: list[np.ndarray] = [pair[modality].image for pair in crops if pair[modality] is not None]  # type: ignore[union-attr]
        if shown:
            images[modality] = normalise(shown)
    return images
