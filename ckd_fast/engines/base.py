"""The contract of an engine: make a target, start a search for it, read the result.

An engine owns the weights and, on a GPU, graphs and buffers. A tracker owns its targets, so any number of trackers can
share one engine. The engine's lock lets one call at a time use the network.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ckd_fast.errors import EngineError, InputError
from ckd_fast.frames import RawPair
from ckd_fast.pending import Pending
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.model import OnStep
from ckd_fast.reference.track import Prediction
from ckd_fast.types import Box

NOT_CALIBRATED = 0.2  # threshold of a lost target for weights that bring none
FRAMES_IN_FLIGHT = 2  # one that the network works on, one that is being copied to the device


class Described(Protocol):
    """What every engine needs to know of a model: weights, or a file that was exported."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def lost_threshold(self) -> float | None: ...


@dataclass(frozen=True, eq=False)
class Target:
    """A target as its engine knows it: its template. Nobody else looks inside."""

    owner: object  # the engine's, see `Engine.check`


@dataclass(frozen=True)
class Search:
    """Where to look for one target."""

    target: Target  # made by the same engine
    # where it was last. None: where this engine's previous search for it ended, which the caller may not know yet;
    # only for engines with `carries_boxes`
    box: Box | None
    factor: float  # side of the search crop, in multiples of sqrt(box area). Without a box it is the model's
    lost_threshold: float = 0.0  # a score below it widens the target's next search, if that has no box
    lost_scale: float = 1.0  # how much wider


@dataclass(frozen=True)
class Found(Prediction):
    """One target in one frame, and where the time went, over all targets of the call."""

    prepare_ms: float
    crop_ms: float
    network_ms: float
    decode_ms: float


def step_names(config: ModelConfig) -> tuple[str, ...]:
    """The steps of one frame, in order; every engine that can be observed reports them under these names.

    An engine leaves out a step that it fuses with the next one. After an elimination, `attention` holds only the tokens
    that stay.
    """
    names = ["crop", "patch_embed"]
    for block in range(config.depth):
        if config.eliminates_at(block):
            names += [f"block{block}.scores", f"block{block}.eliminate"]
        names += [f"block{block}.attention", f"block{block}.mlp"]
    return (*names, "norm", "head.score", "head.size", "head.offset", "decode")


class Engine(ABC):
    """Finds targets in pairs of frames."""

    name: str
    carries_boxes = False  # whether `Search.box` may be None
    most_targets: int | None = None  # in one call; None: any number

    def __init__(self, model: Described, device: torch.device, dtype: torch.dtype, note: str = "") -> None:
        self.config = model.config
        # For trackers whose configuration sets no threshold of its own.
        self.lost_threshold = NOT_CALIBRATED if model.lost_threshold is None else model.lost_threshold
        self.device = device
        self.dtype = dtype
        self.note = note
        self._lock = threading.Lock()
        self._owner = object()  # marks this engine's targets

    def __str__(self) -> str:
        """Name, device and precision, and notes: why `auto` chose this engine, what the GPU lacks, what failed."""
        notes = "; ".join(note for note in self.notes if note)
        return f"{self.name} on {self.device}, {str(self.dtype).removeprefix('torch.')}" + (
            f" ({notes})" if notes else ""
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What `str(engine)` says beside its name; empty ones are left out."""
        return (self.note,)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"

    @abstractmethod
    def make_target(self, frames: RawPair, box: Box) -> Target:
        """Crop and embed the template of a new target; both modalities must be there."""

    @abstractmethod
    def start(self, searches: Sequence[Search], frames: RawPair, on_step: OnStep | None = None) -> Pending[list[Found]]:
        """Start to find targets in one pair of frames.

        Args:
            searches: at least one, at most `most_targets`, each for another target (else ValueError).
            frames: the pair. A missing modality is shown as the mean image and has no vote in eliminations. The caller
                may overwrite the frames as soon as this returns.
            on_step: called with the name and the value of every step, see `step_names`. The frame may then run slower.

        Returns:
            What was found, in the order of `searches`.
        """

    def check(self, searches: Sequence[Search]) -> None:
        """Raise for searches that this engine cannot start."""
        most = self.most_targets
        if not searches or (most is not None and len(searches) > most):
            expected = "at least 1" if most is None else f"1 to {most}"
            raise ValueError(f"{len(searches)} targets in one call: expected {expected}")
        if len({search.target for search in searches}) < len(searches):
            raise ValueError("a target stands in one call twice: search for it once per frame")
        for search in searches:
            if search.target.owner is not self._owner:
                raise InputError("this target belongs to another engine: call init on a tracker of this one")
            if search.box is None and not self.carries_boxes:
                raise ValueError(f"engine {self.name!r} keeps no boxes: every search needs one")

    @abstractmethod
    def run_network(self, template_images: Tensor, search_images: Tensor) -> HeadMaps:
        """Run the network alone, to measure it: normalised crops [2, B, 3, ., .] to maps, all on the device.

        As in the authors' measurement, the template is embedded anew. All template tokens decide what is dropped.
        """

    def not_finite(self) -> EngineError:
        """The error to raise when the network's result holds NaN or infinity."""
        return EngineError(
            f"the network's result is not finite on engine {self}: the weights overflow in this precision; "
            "try dtype='bfloat16' or 'float32', and check the weights"
        )
