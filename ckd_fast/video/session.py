"""`ckd-fast track`: follow targets from the first frame of a source to its last, and write the results."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ckd_fast.boxes import ResultFormat
from ckd_fast.errors import CkdFastError, InputError, OutputError
from ckd_fast.files import refuse_overwrite
from ckd_fast.interrupts import interruptible
from ckd_fast.multi import MultiTracker
from ckd_fast.types import Box, TrackResult

from .results import ResultFiles, TrackedFrame, results_in
from .sources import Pair, PairSource

DEFAULT_FPS = 25.0

# The targets' boxes, given the first pair.
FirstBoxes = Callable[[Pair], Sequence[Sequence[float]]]


@dataclass(frozen=True)
class SessionOptions:
    """What to write, and when to stop."""

    out: Path
    video: bool = True
    plot: bool = False
    # "float" (comma, four decimals) or "authors" (tab, truncated to whole numbers)
    result_format: ResultFormat = "float"
    fps: float | None = None  # of the annotated video; None: the source's, or 25
    max_unreadable: int = 10  # fail if more frames than this cannot be read
    limit: int | None = None  # stop after this many frames
    force: bool = False  # overwrite an earlier run's results


@dataclass(frozen=True)
class SessionSummary:
    frames: int  # tracked or skipped, including the first
    seconds: float  # spent tracking, without reading and writing
    fps: float  # tracked frames per second of tracking
    lost: tuple[int, ...]  # frames in which the target counts as lost, per target
    mean_iou: float | None  # with the ground truth, without the first frame; None if there is no truth
    unreadable: tuple[str, ...]  # what could not be read
    interrupted: bool  # the user ended it
    files: tuple[str, ...]  # what was written


@dataclass
class _Tally:
    """What the summary and the plot need of every frame."""

    scores: list[tuple[float | None, ...]] = field(default_factory=list)
    overlaps: list[float | None] = field(default_factory=list)
    lost: Counter[int] = field(default_factory=Counter)
    tracked: int = 0
    seconds: float = 0.0

    def add(self, frame: TrackedFrame) -> None:
        self.scores.append(tuple(None if result is None else result.score for result in frame.results))
        self.overlaps.append(frame.overlap)
        self.lost.update(number for number, result in enumerate(frame.results) if result is not None and result.lost)
        self.tracked += frame.seconds > 0
        self.seconds += frame.seconds

    def mean_iou(self) -> float | None:
        known = [overlap for overlap in self.overlaps[1:] if overlap is not None]
        return sum(known) / len(known) if known else None


def track_pairs(
    pairs: Iterable[Pair], tracker: MultiTracker, first: FirstBoxes, truth: Sequence[Box | None]
) -> Iterator[TrackedFrame]:
    """Track targets through frame pairs. If neither image of a pair can be read, the boxes stay where they are."""
    for number, pair in enumerate(pairs):
        results: Sequence[TrackResult | None] = [None] * len(tracker)
        begin = end = time.perf_counter()
        if number == 0:
            if pair.rgb is None or pair.tir is None:
                raise InputError(f"the first frame is needed in both modalities: {pair.problem}")
            results = [None] * len(tracker.init(pair.rgb, pair.tir, first(pair)))
        elif pair.rgb is not None or pair.tir is not None:
            begin = time.perf_counter()
            results = list(tracker.update(pair.rgb, pair.tir).values())
            end = time.perf_counter()
        row = pair.index if pair.visible_index is None else pair.visible_index
        true_box = truth[row] if row < len(truth) else None
        yield TrackedFrame(pair, tuple(tracker.boxes.values()), tuple(results), true_box, end - begin)


def run_session(
    source: PairSource,
    tracker: MultiTracker,
    first: FirstBoxes,
    options: SessionOptions,
    *,
    truth: Sequence[Box | None] | None = None,
    on_frame: Callable[[Pair], object] = lambda _pair: None,
    on_problem: Callable[[str], object] = lambda _text: None,
) -> SessionSummary:
    """Track through a source and write the results.

    Args:
        source: of the frames.
        tracker: follows the targets.
        first: the targets' boxes, given the first pair.
        options: what to write, and when to stop.
        truth: the first target's true box per visible frame, None where it is not in view.
        on_frame: called after every frame, for progress.
        on_problem: called for every frame that cannot be read.
    """
    refuse_overwrite(results_in(options.out), force=options.force)
    tally = _Tally()
    unreadable: list[str] = []

    def readable() -> Iterator[Pair]:
        for pair in source:
            if pair.problem:
                unreadable.append(pair.problem)
                on_problem(pair.problem)
                if len(unreadable) > options.max_unreadable:
                    raise InputError(f"more than {options.max_unreadable} unreadable frames: {pair.problem}")
            yield pair

    files: ResultFiles | None = None
    with ExitStack() as stack, interruptible() as stop:
        source.stopped = stop.is_set
        try:
            for frame in track_pairs(readable(), tracker, first, truth or ()):
                if files is None:
                    fps = (options.fps or source.fps or DEFAULT_FPS) if options.video else None
                    files = ResultFiles(options.out, len(frame.boxes), options.result_format, fps)
                    stack.enter_context(files)
                rgb, tir = frame.pair.rgb, frame.pair.tir
                seen = options.video and (rgb is not None or tir is not None)
                files.write(frame, tracker.registered(rgb, tir) if seen else None)
                tally.add(frame)
                on_frame(frame.pair)
                if stop.is_set() or len(tally.scores) == options.limit:
                    break
        except (CkdFastError, OSError) as error:
            if files is None:
                raise
            kind = type(error) if isinstance(error, CkdFastError) else OutputError
            raise kind(f"{error} (after {len(tally.scores)} frames, which are in {options.out})") from error
        interrupted = stop.is_set()
    if files is None:
        raise InputError("the source has no frames")
    if options.plot:
        from .plot import plot_track

        files.paths.append(options.out / "plot.png")
        scores = list(zip(*tally.scores, strict=True))
        plot_track(files.paths[-1], scores, tracker.lost_threshold, tally.overlaps if truth is not None else None)
    return SessionSummary(
        frames=len(tally.scores),
        seconds=tally.seconds,
        fps=tally.tracked / tally.seconds if tally.seconds else 0.0,
        lost=tuple(tally.lost[number] for number in range(len(tracker))),
        mean_iou=tally.mean_iou(),
        unreadable=tuple(unreadable),
        interrupted=interrupted,
        files=tuple(map(str, files.paths)),
    )
