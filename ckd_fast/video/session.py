"""Track targets through a source and write everything down as it comes.

Written to the output folder, each complete up to the last frame whenever the run ends:

    boxes.txt          one row per frame, the given box first (boxes-1.txt, boxes-2.txt, ... for several targets)
    results.jsonl      one line per frame: boxes, scores, timings, problems
    video.mp4          both modalities side by side with boxes
    plot.png           score (and overlap with the ground truth) over time
"""

from __future__ import annotations

import dataclasses
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, TextIO

from ckd_fast.adapters.authors import truncated_row
from ckd_fast.boxes import iou
from ckd_fast.errors import CkdFastError, InputError, OutputError
from ckd_fast.files import reading, refuse_overwrite
from ckd_fast.frames import FramePair
from ckd_fast.multi import MultiTracker
from ckd_fast.types import Box, TrackResult

from .sources import Pair, PairSource
from .writers import AnnotatedVideo, Mark, annotate

ResultFormat = Literal["float", "authors"]
DEFAULT_FPS = 25.0
PROBLEMS_SHOWN = 20


@dataclass(frozen=True)
class SessionOptions:
    """What is written, and when to give up.

    Attributes:
        out: the folder.
        video: write the annotated video.
        plot: write the plot.
        result_format: "float" (comma, four decimals) or "authors" (tab, truncated to whole numbers).
        fps: of the annotated video; None: the source's, or 25.
        max_unreadable: more unreadable frames than this stop the run.
        limit: stop after this many frames.
        force: overwrite results that are there.
    """

    out: Path
    video: bool = True
    plot: bool = False
    result_format: ResultFormat = "float"
    fps: float | None = None
    max_unreadable: int = 10
    limit: int | None = None
    force: bool = False


@dataclass(frozen=True)
class SessionSummary:
    """How a run went.

    Attributes:
        frames: tracked or skipped, the first included.
        seconds: of tracking, without reading and writing.
        fps: tracked frames per second of tracking.
        lost: results below the threshold, per target.
        mean_iou: with the ground truth, without the first frame; None without one.
        unreadable: what could not be read.
        interrupted: ended by Ctrl-C.
        files: what was written.
    """

    frames: int
    seconds: float
    fps: float
    lost: tuple[int, ...]
    mean_iou: float | None
    unreadable: tuple[str, ...]
    interrupted: bool
    files: tuple[str, ...]


def results_in(folder: Path) -> list[Path]:
    """Files that a run has left in a folder."""
    known = ("boxes.txt", "boxes-[0-9]*.txt", "results.jsonl", "video.mp4", "plot.png")
    return sorted(path for pattern in known for path in folder.glob(pattern))


def refuse_old_results(options: SessionOptions) -> None:
    """Raise where results are in the folder already and may not be overwritten."""
    with reading(options.out):
        refuse_overwrite(results_in(options.out), force=options.force)


class _Results:
    """Files that grow with every frame."""

    def __init__(self, options: SessionOptions, targets: int, fps: float, files: ExitStack) -> None:
        self._options = options
        boxes = ["boxes.txt"] if targets == 1 else [f"boxes-{number}.txt" for number in range(1, targets + 1)]
        names = [*boxes, "results.jsonl"] + ["video.mp4"] * options.video + ["plot.png"] * options.plot
        out = options.out
        refuse_old_results(options)
        try:
            out.mkdir(parents=True, exist_ok=True)
            for old in results_in(out):  # of an earlier run with other targets, too
                old.unlink()
            self._boxes: list[TextIO] = [files.enter_context((out / name).open("w")) for name in boxes]
            self._lines = files.enter_context((out / "results.jsonl").open("w"))
        except OSError as error:
            raise OutputError(f"{out}: cannot be written ({error.strerror or error})") from error
        self._video = AnnotatedVideo(out / "video.mp4", fps) if options.video else None
        if self._video is not None:
            files.callback(self._video.close)
        self.files = tuple(str(out / name) for name in names)

    def write(
        self,
        pair: Pair,
        shown: FramePair | None,
        boxes: Sequence[Box],
        results: Sequence[TrackResult | None],
        truth: Box | None,
    ) -> None:
        """One frame; the result is None where it was given or skipped, `shown` where there is nothing to show."""
        targets = []
        for file, box, result in zip(self._boxes, boxes, results, strict=True):
            text = ",".join(f"{value:.4f}" for value in box) + "\n"
            file.write(truncated_row(box) if self._options.result_format == "authors" else text)
            file.flush()
            entry: dict[str, object] = {"box": list(box), "score": None, "lost": None}
            if result is not None:
                entry = dataclasses.asdict(result)
                entry.pop("frame")
            targets.append(entry)
        line: dict[str, object] = {"frame": pair.index, "name": pair.name, "targets": targets, "problem": pair.problem}
        if truth is not None:
            line["iou"] = float(iou(boxes[0], truth))
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        if self._video is not None and shown is not None:
            marks = [
                Mark(
                    box,
                    (f"{number}: " if len(boxes) > 1 else "") + ("" if r is None else f"{r.score:.2f}"),
                    lost=r is not None and r.lost,
                    truth=truth if number == 1 else None,
                )
                for number, (box, r) in enumerate(zip(boxes, results, strict=True), 1)
            ]
            self._video.write(annotate(shown, marks))


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C or a polite request to end (SIGTERM) sets an event instead of breaking in; a second one breaks in."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_session(
    source: PairSource,
    tracker: MultiTracker,
    first: Callable[[Pair], Sequence[Sequence[float]]],
    options: SessionOptions,
    *,
    truth: Sequence[Box | None] | None = None,
    on_frame: Callable[[Pair], object] = lambda _pair: None,
    on_problem: Callable[[str], object] = lambda _text: None,
) -> SessionSummary:
    """Track through a source.

    Args:
        source: where frames come from.
        tracker: follows the targets.
        first: the targets' boxes, given the first pair.
        options: what is written.
        truth: the first target's true box per frame, None where it is not in view.
        on_frame: called after every frame, for progress.
        on_problem: called with what could not be read.
    """
    frames, seconds, skipped = 0, 0.0, 0
    lost: list[int] = []
    unreadable: list[str] = []
    overlaps: list[float | None] = []
    scores: list[list[float | None]] = []
    results_files: _Results | None = None
    shown: FramePair | None = None
    targets: list[int] = []
    refuse_old_results(options)
    with ExitStack() as files, _interruptible() as stop:
        source.stopped = stop.is_set
        try:
            for pair in source:
                if pair.problem:
                    unreadable.append(pair.problem)
                    on_problem(pair.problem)
                    if len(unreadable) > options.max_unreadable:
                        raise InputError(f"more than {options.max_unreadable} unreadable frames: {pair.problem}")
                results: list[TrackResult | None]
                if results_files is None:
                    if pair.rgb is None or pair.tir is None:
                        raise InputError(f"the first frame is needed in both modalities: {pair.problem}")
                    given = [tuple(float(v) for v in box) for box in first(pair)]
                    targets = tracker.init(pair.rgb, pair.tir, given)
                    fps = options.fps or source.fps or DEFAULT_FPS
                    results_files = _Results(options, len(targets), fps, files)
                    results, lost = [None] * len(targets), [0] * len(targets)
                    scores = [[] for _ in targets]
                elif pair.rgb is None and pair.tir is None:
                    results, skipped = [None] * len(targets), skipped + 1
                else:
                    begin = time.perf_counter()
                    found = tracker.update(pair.rgb, pair.tir)
                    results = [found[number] for number in targets]
                    seconds += time.perf_counter() - begin
                boxes = [tracker.boxes[number] for number in targets]
                place = pair.index if pair.visible_index is None else pair.visible_index
                true_box = truth[place] if truth is not None and place < len(truth) else None
                if pair.rgb is None and pair.tir is None:
                    shown = FramePair(None, None, shown.size) if shown is not None else None
                else:
                    shown = tracker.registered(pair.rgb, pair.tir) if options.video else None
                results_files.write(pair, shown, boxes, results, true_box)
                overlaps.append(float(iou(boxes[0], true_box)) if true_box is not None else None)
                for number, result in enumerate(results):
                    lost[number] += result is not None and result.lost
                    scores[number].append(None if result is None else result.score)
                frames += 1
                on_frame(pair)
                if stop.is_set() or frames == options.limit:
                    break
        except (CkdFastError, OSError) as error:
            if results_files is None:
                raise
            # What was written stays; say where it is and how far it goes.
            kind = type(error) if isinstance(error, CkdFastError) else OutputError
            raise kind(f"{error} (after {frames} frames, which are in {options.out})") from error
        interrupted = stop.is_set()
    if results_files is None:
        raise InputError("the source has no frames")
    seen = [value for value in overlaps[1:] if value is not None]
    if options.plot:
        from .plot import plot_track

        threshold = tracker.lost_threshold
        plot_track(options.out / "plot.png", scores, threshold, overlaps if truth is not None else None)
    tracked = frames - 1 - skipped
    return SessionSummary(
        frames=frames,
        seconds=seconds,
        fps=tracked / seconds if seconds else 0.0,
        lost=tuple(lost),
        mean_iou=sum(seen) / len(seen) if seen else None,
        unreadable=tuple(unreadable),
        interrupted=interrupted,
        files=results_files.files,
    )
