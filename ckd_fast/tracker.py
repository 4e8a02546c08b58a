"""One target's life: `Tracker`, the drop-in for the authors' tracker. Many targets: `multi.MultiTracker`."""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .config import TrackerConfig
from .engines import Engine, Found, Pending, Search, Slot, build_engine
from .errors import InputError, NotInitialisedError
from .frames import FrameForm, FramePair, RawPair, check_box, check_pair, register, settle_form
from .reference.config import ModelConfig
from .types import Box, Timings, TrackResult
from .weights import LoadedModel, load_model

if TYPE_CHECKING:
    import torch

    from .frames import Frame

NO_TARGET = "the tracker has no target yet: call init(rgb, tir, box) first"
MOST_PENDING = 2  # frames on their way: one that the engine works on, one that is being copied


@dataclass
class Target:
    """What a tracker knows of one target."""

    slot: Slot
    box: Box
    last: TrackResult | None = None

    @property
    def frame(self) -> int:
        """Frames tracked so far."""
        return self.last.frame if self.last is not None else 0


class Follower(ABC):
    """What trackers of one and of many targets share: an engine, a behaviour. Arguments as for `Tracker`."""

    def __init__(
        self,
        weights: str | os.PathLike[str] | LoadedModel | None = None,
        model: str | ModelConfig | None = None,
        engine: str | Engine = "auto",
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        config: TrackerConfig | None = None,
        *,
        seed: int | None = None,
    ) -> None:
        if config is not None and not isinstance(config, TrackerConfig):
            raise InputError(f"config is a {type(config).__name__}: expected a TrackerConfig")
        self.config = config or TrackerConfig()
        if isinstance(engine, Engine):
            if weights is not None or model is not None or dtype is not None or device != "auto":
                raise InputError("an engine brings its weights, device and precision: pass it alone, with config only")
            self.engine = engine
        else:
            if isinstance(weights, LoadedModel):
                if model is not None:
                    raise InputError("a LoadedModel brings its sizes: pass it without model=")
                loaded = weights
            else:
                loaded = load_model(weights, model, seed)
            self.engine = build_engine(engine, loaded, device, dtype)
        own = self.config.lost_threshold
        self.lost_threshold = self.engine.lost_threshold if own is None else own
        self._start_over()

    @abstractmethod
    def _start_over(self) -> None:
        """Have no targets."""

    def warmup(self, frame_size: tuple[int, int], *, tir_size: tuple[int, int] | None = None, targets: int = 1) -> None:
        """Pay now for what the engine otherwise compiles and captures with the first frames.

        Args:
            frame_size: height and width of the visible frames.
            tir_size: of the thermal ones; None: the same. They are taken to be uint8 with three channels.
            targets: how many will be followed.
        """
        import numpy as np

        if targets < 1:
            raise InputError(f"targets={targets}: expected at least 1")
        rgb = np.zeros((*frame_size, 3), np.uint8)
        tir = np.zeros((*(tir_size or frame_size), 3), np.uint8)
        form = settle_form(rgb, tir, self.config)
        frames = check_pair(rgb, tir, form, self.config)
        side = max(min(frame_size) / 4, 1.0)
        box = (frame_size[1] / 2 - side / 2, frame_size[0] / 2 - side / 2, side, side)
        slot = self.engine.remember(frames, box)
        most = self.engine.most_targets or targets
        for start in range(0, targets, most):
            searches = [Search(slot, box, self.engine.config.search_factor)] * min(targets - start, most)
            for _ in range(MOST_PENDING):  # an engine with two frame buffers has something to do for each
                self.engine.find(searches, frames)

    def _search(self, target: Target, frames: RawPair, form: FrameForm) -> Search:
        """Where to look for a target whose box belongs to frames of the size `form`."""
        box = target.box
        if frames.form.rgb_size != form.rgb_size:
            box = _scaled(box, form.rgb_size, frames.form.rgb_size)
        factor = self.engine.config.search_factor
        scale = self.config.lost_search_scale
        if target.last is not None and target.last.lost:
            factor = max(factor, min(factor * scale, _widest(box, frames.form.rgb_size)))
        return Search(target.slot, box, factor, self.lost_threshold, scale)

    def _accept(self, target: Target, found: Found, frames: RawPair, begin: float, prepare_ms: float) -> TrackResult:
        """Make a result of what was found and move the target there."""
        result = TrackResult(
            box=found.box,
            score=found.score,
            lost=found.score < self.lost_threshold,
            frame=target.frame + 1,
            rgb_used=frames.rgb is not None,
            tir_used=frames.tir is not None,
            timings=Timings(
                prepare_ms=prepare_ms + found.prepare_ms,
                crop_ms=found.crop_ms,
                network_ms=found.network_ms,
                decode_ms=found.decode_ms,
                total_ms=(time.perf_counter() - begin) * 1e3,
            ),
        )
        target.box, target.last = result.box, result
        return result


@dataclass
class _Flight:
    """A pair of frames on its way."""

    pending: Pending
    frames: RawPair
    begin: float
    prepare_ms: float
    outcome: TrackResult | Exception | None = None


class PendingTrack:
    """A pair of frames that `Tracker.track_async` took."""

    def __init__(self, flight: _Flight, settle_oldest: Callable[[], None]) -> None:
        self._flight = flight
        self._settle_oldest = settle_oldest

    def result(self) -> TrackResult:
        """Wait for the target's place in these frames; asked again, the same answer or error."""
        while self._flight.outcome is None:
            self._settle_oldest()
        if isinstance(self._flight.outcome, Exception):
            raise self._flight.outcome
        return self._flight.outcome


class Tracker(Follower):
    """Follows one target through paired visible and thermal frames.

    Frames are numpy arrays or torch tensors [height, width, channels]: the visible one uint8 with three channels (RGB,
    or BGR by `TrackerConfig.color`), the thermal one uint8 or uint16 with one or three. After `init` one of them may be
    None. A call that fails leaves the tracker as it was.

    Args:
        weights: a file, a `LoadedModel`, "random", or None for the packaged model.
        model: a preset's name or sizes, where the weights do not settle them.
        engine: "auto", "reference", "compiled", "triton", or an engine of another tracker to share its weights.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "float32", "float16", "bfloat16" or torch's; None is the engine's default.
        config: behaviour.
        seed: of "random" weights.
    """

    def _start_over(self) -> None:
        self._form: FrameForm | None = None
        self._target: Target | None = None
        self._flights: list[_Flight] = []

    def __repr__(self) -> str:
        state = "not initialised" if self._target is None else f"frame {self.frame}, box {self.box}"
        return f"<Tracker: {self.engine}; {state}>"

    # --- the authors' call shape ---------------------------------------------------------------------------------

    def initialize(self, rgb: Frame, tir: Frame, info: Mapping[str, object]) -> dict[str, object]:
        """Start on a target: `info["init_bbox"]` is (x, y, w, h). Other entries are ignored."""
        if not isinstance(info, Mapping) or "init_bbox" not in info:
            raise InputError("info: expected a dict with 'init_bbox': [x, y, w, h]")
        self.init(rgb, tir, info["init_bbox"])  # type: ignore[arg-type]
        return {}

    def track(self, rgb: Frame | None, tir: Frame | None, info: object = None) -> dict[str, object]:  # noqa: ARG002
        """Find the target in the next frames: {"target_bbox": [x, y, w, h], "best_score": s}. `info` is ignored."""
        result = self.update(rgb, tir)
        return {"target_bbox": list(result.box), "best_score": result.score}

    # --- ours ----------------------------------------------------------------------------------------------------

    def init(self, rgb: Frame, tir: Frame, box: Sequence[float]) -> None:
        """Start on a target.

        Args:
            rgb: visible frame.
            tir: thermal frame.
            box: the target (x, y, w, h) in pixels of the visible frame; it must show something of the frame.
        """
        form = settle_form(rgb, tir, self.config)
        start = check_box(box, form.rgb_size)
        slot = self.engine.remember(check_pair(rgb, tir, form, self.config), start)
        self._settle()
        self._form, self._target = form, Target(slot, start)

    def update(self, rgb: Frame | None, tir: Frame | None) -> TrackResult:
        """Find the target in the next frames; one of them may be None."""
        begin = time.perf_counter()
        self._settle()
        target, form = self._following()
        frames = check_pair(rgb, tir, form, self.config)
        prepare_ms = (time.perf_counter() - begin) * 1e3
        (found,) = self.engine.find([self._search(target, frames, form)], frames)
        result = self._accept(target, found, frames, begin, prepare_ms)
        self._form = frames.form
        return result

    def track_async(self, rgb: Frame | None, tir: Frame | None) -> PendingTrack:
        """As `update`, but return before the target is found.

        An engine on a GPU copies these frames while it works on those before them, and carries the box over by itself.
        The caller may reuse the frames' memory at once. Engines without a queue of their own find the target now.
        """
        begin = time.perf_counter()
        target, form = self._following()
        if self._flights:
            form = self._flights[-1].frames.form
        frames = check_pair(rgb, tir, form, self.config)
        if not self.engine.carries or frames.form.rgb_size != form.rgb_size:
            self._settle()
        while len(self._flights) >= MOST_PENDING:
            self._settle_oldest()
        search = self._search(target, frames, form)
        if self._flights:
            search = replace(search, box=None, factor=self.engine.config.search_factor)
        prepare_ms = (time.perf_counter() - begin) * 1e3
        flight = _Flight(self.engine.start([search], frames), frames, begin, prepare_ms)
        self._flights.append(flight)
        return PendingTrack(flight, self._settle_oldest)

    def follow(self, pairs: Iterable[tuple[Frame | None, Frame | None]]) -> Iterator[TrackResult]:
        """Results for pairs of frames, one by one, taking in each next pair while the engine works on the last."""
        waiting: PendingTrack | None = None
        for rgb, tir in pairs:
            started = self.track_async(rgb, tir)
            if waiting is not None:
                yield waiting.result()
            waiting = started
        if waiting is not None:
            yield waiting.result()

    def reset(self) -> None:
        """Forget the target; the engine stays."""
        self._settle()
        self._form = self._target = None

    @property
    def frame(self) -> int:
        """Frames tracked since `init`, without those whose result was not asked for yet."""
        return self._target.frame if self._target is not None else 0

    @property
    def last(self) -> TrackResult | None:
        """The last result, None right after `init`."""
        return self._target.last if self._target is not None else None

    def registered(self, rgb: Frame | None, tir: Frame | None) -> FramePair:
        """Frames of the current track as the network sees them: RGB order, 8 bits, thermal on the visible grid."""
        return register(check_pair(rgb, tir, self._following()[1], self.config))

    @property
    def box(self) -> Box | None:
        """The target's last box; None before `init`. Setting it is an operator's correction: the next search starts
        there. The template stays that of `init`."""
        return self._target.box if self._target is not None else None

    @box.setter
    def box(self, value: Sequence[float]) -> None:
        self._settle()
        target, form = self._following()
        target.box = check_box(value, form.rgb_size)

    def _following(self) -> tuple[Target, FrameForm]:
        if self._target is None or self._form is None:
            raise NotInitialisedError(NO_TARGET)
        return self._target, self._form

    def _settle(self) -> None:
        while self._flights:
            self._settle_oldest()

    def _settle_oldest(self) -> None:
        """Take in the result of the oldest frames on their way; their handle has it then."""
        oldest = self._flights[0]
        target, _ = self._following()
        try:
            (found,) = oldest.pending.result()
        except Exception as error:  # noqa: BLE001 - whatever it is, the handle tells it
            # What was searched from a box that does not exist is worth nothing.
            for flight in self._flights:
                flight.outcome = error
            self._flights.clear()
            return
        self._flights.pop(0)
        self._form = oldest.frames.form
        oldest.outcome = self._accept(target, found, oldest.frames, oldest.begin, oldest.prepare_ms)


def _widest(box: Box, size: tuple[int, int]) -> float:
    """The search factor at which a crop is twice as wide as the frame: there is nothing to see beyond."""
    return 2 * max(size) / math.sqrt(box[2] * box[3])


def _scaled(box: Box, before: tuple[int, int], after: tuple[int, int]) -> Box:
    """The same place in a frame of another size (height, width)."""
    across, down = after[1] / before[1], after[0] / before[0]
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down
