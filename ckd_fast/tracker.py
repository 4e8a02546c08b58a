"""Follow one target: `Tracker`, a drop-in for the authors' tracker. For many targets see `multi.MultiTracker`."""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .config import TrackerConfig
from .engines import Engine, Found, Search, Target, build_engine
from .engines.base import FRAMES_IN_FLIGHT
from .errors import InputError, NotInitialisedError
from .frames import FrameForm, FramePair, RawPair, Size, check_box, check_pair, first_pair, register
from .pending import Pending
from .reference.config import ModelConfig
from .types import Box, Timings, TrackResult
from .weights import ExportedModel, LoadedModel, open_model

if TYPE_CHECKING:
    import torch

    from .frames import Frame

NO_TARGET = "the tracker has no target yet: call init(rgb, tir, box) first"


@dataclass
class Track:
    """A target on its way through the frames.

    Attributes:
        target: its template, as the engine keeps it.
        box: where it was last.
        size: height and width of the visible frame that `box` belongs to.
        last: its last result, None before the first.
    """

    target: Target
    box: Box
    size: Size
    last: TrackResult | None = None

    @property
    def frame(self) -> int:
        """Frames tracked so far."""
        return self.last.frame if self.last is not None else 0


class Follower(ABC):
    """What `Tracker` and `MultiTracker` share: an engine and a behaviour. For the arguments see `Tracker`."""

    def __init__(
        self,
        weights: str | os.PathLike[str] | LoadedModel | ExportedModel | None = None,
        model: str | ModelConfig | None = None,
        engine: str | Engine = "auto",
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        config: TrackerConfig | None = None,
        *,
        seed: int | None = None,
        threads: int | None = None,
        without: Sequence[str] = (),
    ) -> None:
        if config is not None and not isinstance(config, TrackerConfig):
            raise InputError(f"config is a {type(config).__name__}: expected a TrackerConfig")
        self.config = config or TrackerConfig()
        if isinstance(engine, Engine):
            if any(given is not None for given in (weights, model, dtype, threads)) or device != "auto" or without:
                raise InputError("an engine brings its weights, device and precision: pass it alone, with config only")
            self.engine = engine
        else:
            if isinstance(weights, LoadedModel | ExportedModel):
                if model is not None:
                    raise InputError(f"{type(weights).__name__} brings its sizes: pass it without model=")
                loaded = weights
            else:
                loaded = open_model(weights, model, seed)
            self.engine = build_engine(engine, loaded, device, dtype, threads=threads, without=without)
        own = self.config.lost_threshold
        self.lost_threshold = self.engine.lost_threshold if own is None else own
        self._start_over()

    @abstractmethod
    def _start_over(self) -> None:
        """Forget everything about the last targets and their frames."""

    def warmup(self, frame_size: tuple[int, int], *, tir_size: tuple[int, int] | None = None, targets: int = 1) -> None:
        """Compile kernels and capture graphs now rather than with the first frames.

        Args:
            frame_size: height and width of the visible frames.
            tir_size: height and width of the thermal frames, None: the same; uint8 with three channels.
            targets: how many targets you will follow.
        """
        import numpy as np

        if targets < 1:
            raise InputError(f"targets={targets}: expected at least 1")
        rgb = np.zeros((*frame_size, 3), np.uint8)
        tir = np.zeros((*(tir_size or frame_size), 3), np.uint8)
        frames = first_pair(rgb, tir, self.config)
        side = max(min(frame_size) / 4, 1.0)
        box = (frame_size[1] / 2 - side / 2, frame_size[0] / 2 - side / 2, side, side)
        factor = self.engine.config.search_factor
        searches = [Search(self.engine.make_target(frames, box), box, factor) for _ in range(targets)]
        most = self.engine.most_targets or targets
        for start in range(0, targets, most):
            for _ in range(FRAMES_IN_FLIGHT):  # an engine may have something to prepare for each
                self.engine.start(searches[start : start + most], frames).result()

    def _begin(self, frames: RawPair, box: Sequence[float]) -> Track:
        size = frames.form.rgb_size
        start = check_box(box, size)
        return Track(self.engine.make_target(frames, start), start, size)

    def _search(self, track: Track, frames: RawPair) -> Search:
        """Where to look for a target in the next frames."""
        box, size = track.box, frames.form.rgb_size
        if size != track.size:
            down, across = size[0] / track.size[0], size[1] / track.size[1]
            box = box[0] * across, box[1] * down, box[2] * across, box[3] * down
        factor = self.engine.config.search_factor
        scale = self.config.lost_search_scale
        if track.last is not None and track.last.lost:
            widest = 2 * max(size) / math.sqrt(box[2] * box[3])  # twice the frame: there is nothing to see beyond
            factor = max(factor, min(factor * scale, widest))
        return Search(track.target, box, factor, self.lost_threshold, scale)

    def _accept(self, track: Track, found: Found, frames: RawPair, begin: float, prepare_ms: float) -> TrackResult:
        """Move a track to where its target was found."""
        track.last = TrackResult(
            box=found.box,
            score=found.score,
            lost=found.score < self.lost_threshold,
            frame=track.frame + 1,
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
        track.box, track.size = found.box, frames.form.rgb_size
        return track.last


class Tracker(Follower):
    """Follows one target through paired visible and thermal frames.

    Frames are numpy arrays or torch tensors [height, width, channels]: the visible one uint8 with three channels (RGB,
    or BGR by `TrackerConfig.color`), the thermal one uint8 or uint16 with one or three. After `init` one of them may be
    None. A call that fails leaves the tracker as it was.

    Args:
        weights: a file, also one that was exported to ONNX, a `LoadedModel`, "random", or None for the packaged model.
        model: a preset's name or a `ModelConfig`, for weights that do not say their sizes.
        engine: "auto", "reference", "compiled", "openvino", "onnx", "triton", or another tracker's engine, to share its
            weights.
        device: "auto", "cpu", "cuda" or "cuda:N"; for ONNX files also a provider's name, such as "tensorrt".
        dtype: "float32", "float16", "bfloat16" or torch's; None is the engine's default.
        config: behaviour.
        seed: of "random" weights.
        threads: of the processor that the network may use, see `build_engine`; None: as many as it has cores.
        without: what engine "triton" does without, "graphs" or "overlap", see `build_engine`.
    """

    def _start_over(self) -> None:
        self._form: FrameForm | None = None  # of the latest frames
        self._track: Track | None = None
        # Frames whose result nobody has waited for, oldest first, and their form.
        self._in_flight: dict[Pending[TrackResult], FrameForm] = {}

    def __repr__(self) -> str:
        state = "not initialised" if self._track is None else f"frame {self.frame}, box {self.box}"
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
        frames = first_pair(rgb, tir, self.config)
        track = self._begin(frames, box)
        self._settle()
        self._form, self._track = frames.form, track

    def update(self, rgb: Frame | None, tir: Frame | None) -> TrackResult:
        """Find the target in the next frames; one of them may be None."""
        self._settle()
        return self.track_async(rgb, tir).result()

    def track_async(self, rgb: Frame | None, tir: Frame | None) -> Pending[TrackResult]:
        """As `update`, but return before the target is found.

        On a GPU these frames are copied while the network still works on those before them, and the box goes from
        frame to frame there. Engine "openvino" runs the network behind your back, one pair at a time. You may overwrite
        the frames as soon as this returns. Engines "reference", "compiled" and "onnx" run the network before they
        return.
        """
        begin = time.perf_counter()
        track, form = self._following()
        form = next(reversed(self._in_flight.values()), form)
        frames = check_pair(rgb, tir, form, self.config)
        overlaps = self.engine.carries_boxes and frames.form.rgb_size == form.rgb_size
        self._settle(leave=FRAMES_IN_FLIGHT - 1 if overlaps else 0)
        search = self._search(track, frames)
        before = None
        if self._in_flight:  # the box is on the device still
            before = next(reversed(self._in_flight))
            search = replace(search, box=None, factor=self.engine.config.search_factor)
        prepare_ms = (time.perf_counter() - begin) * 1e3
        started = self.engine.start([search], frames)

        def wait() -> TrackResult:
            try:
                if before is not None:
                    before.result()  # in order; if that failed, this was searched from a box that does not exist
                (found,) = started.result()
            except Exception:
                self._in_flight.clear()
                raise
            self._in_flight.pop(pending, None)
            self._form = frames.form
            return self._accept(track, found, frames, begin, prepare_ms)

        pending = Pending(wait)
        self._in_flight[pending] = frames.form
        return pending

    def follow(self, pairs: Iterable[tuple[Frame | None, Frame | None]]) -> Iterator[TrackResult]:
        """Results for pairs of frames, one by one; the engine works on each pair while the next one is read."""
        waiting: Pending[TrackResult] | None = None
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
        self._start_over()

    @property
    def frame(self) -> int:
        """Frames tracked since `init`; a frame counts once its result was asked for."""
        return self._track.frame if self._track is not None else 0

    @property
    def last(self) -> TrackResult | None:
        """The last result, None right after `init`."""
        return self._track.last if self._track is not None else None

    @property
    def box(self) -> Box | None:
        """The target's last box; None before `init`.

        Set it to correct the tracker by hand: the next search starts there. The template stays that of `init`.
        """
        return self._track.box if self._track is not None else None

    @box.setter
    def box(self, value: Sequence[float]) -> None:
        self._settle()
        track, form = self._following()
        track.box, track.size = check_box(value, form.rgb_size), form.rgb_size

    def registered(self, rgb: Frame | None, tir: Frame | None) -> FramePair:
        """Frames of this track as the network sees them: RGB order, 8 bits, thermal on the visible grid."""
        return register(check_pair(rgb, tir, self._following()[1], self.config))

    def _following(self) -> tuple[Track, FrameForm]:
        if self._track is None or self._form is None:
            raise NotInitialisedError(NO_TARGET)
        return self._track, self._form

    def _settle(self, leave: int = 0) -> None:
        """Wait for the oldest frames in flight until only so many are left."""
        while len(self._in_flight) > leave:
            oldest = next(iter(self._in_flight))
            with suppress(Exception):  # whoever asks for this result gets the error
                oldest.result()
            self._in_flight.pop(oldest, None)
