"""The files that `ckd-fast track` writes.

    boxes.txt          one row per frame, the given box first (boxes-1.txt, boxes-2.txt, ... for several targets)
    results.jsonl      one line per frame: boxes, scores, timings, problems
    video.mp4          both modalities side by side with boxes
    plot.png           score (and overlap with the ground truth) over time

All but the plot grow with every frame, so they are complete up to the last frame however the run ends.
"""

from __future__ import annotations

import dataclasses
import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ckd_fast.boxes import ResultFormat, box_row, iou
from ckd_fast.files import make_folder, reading, writing
from ckd_fast.frames import FramePair
from ckd_fast.types import Box, TrackResult

from .sources import Pair
from .writers import AnnotatedVideo, Mark, annotate

if TYPE_CHECKING:
    from typing_extensions import Self

FILE_PATTERNS = ("boxes.txt", "boxes-[0-9]*.txt", "results.jsonl", "video.mp4", "plot.png")


@dataclass(frozen=True)
class TrackedFrame:
    """One frame and what the tracker found in it."""

    pair: Pair
    boxes: tuple[Box, ...]  # per target; given in the first frame, repeated where neither image could be read
    results: tuple[TrackResult | None, ...]  # per target; None where its box was given or repeated
    truth: Box | None  # the first target's true box, None where unknown or not in view
    seconds: float  # spent tracking; 0 if nothing was tracked

    @property
    def overlap(self) -> float | None:
        """IoU of the first target with its true box."""
        return None if self.truth is None else float(iou(self.boxes[0], self.truth))


def results_in(folder: Path) -> list[Path]:
    """Files that an earlier run left in a folder."""
    with reading(folder):
        return sorted(path for pattern in FILE_PATTERNS for path in folder.glob(pattern))


class ResultFiles:
    """Writes boxes, results and the video, frame by frame. Removes an earlier run's files first.

    Args:
        out: the folder.
        targets: how many there are.
        result_format: of the boxes.
        video_fps: frames per second of the video; None for no video.
    """

    def __init__(self, out: Path, targets: int, result_format: ResultFormat, video_fps: float | None) -> None:
        names = ["boxes.txt"] if targets == 1 else [f"boxes-{number}.txt" for number in range(1, targets + 1)]
        self._format = result_format
        self._open = ExitStack()
        self._video: AnnotatedVideo | None = None
        self._size = (0, 0)
        make_folder(out)
        with writing(out):
            for old in results_in(out):
                old.unlink()
            self._boxes = [self._open.enter_context((out / name).open("w")) for name in names]
            self._lines = self._open.enter_context((out / "results.jsonl").open("w"))
        self.paths = [*(out / name for name in names), out / "results.jsonl"]
        if video_fps is not None:
            self._video = AnnotatedVideo(out / "video.mp4", video_fps)
            self._open.callback(self._video.close)
            self.paths.append(self._video.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def write(self, frame: TrackedFrame, shown: FramePair | None) -> None:
        """Append one frame. `shown` are its images for the video; None where neither could be read."""
        for file, box in zip(self._boxes, frame.boxes, strict=True):
            file.write(box_row(box, self._format))
            file.flush()
        self._lines.write(json.dumps(_as_json(frame)) + "\n")
        self._lines.flush()
        if self._video is not None:
            self._size = self._size if shown is None else shown.size
            self._video.write(annotate(shown or FramePair(None, None, self._size), _marks(frame)))


def _as_json(frame: TrackedFrame) -> dict[str, object]:
    targets: list[dict[str, object]] = []
    for box, result in zip(frame.boxes, frame.results, strict=True):
        if result is None:
            targets.append({"box": list(box), "score": None, "lost": None})
        else:
            entry = dataclasses.asdict(result)
            del entry["frame"]
            targets.append(entry)
    pair = frame.pair
    line = {"frame": pair.index, "name": pair.name, "targets": targets, "problem": pair.problem}
    return line if frame.truth is None else line | {"iou": frame.overlap}


def _marks(frame: TrackedFrame) -> list[Mark]:
    marks = []
    for number, (box, result) in enumerate(zip(frame.boxes, frame.results, strict=True), 1):
        name = f"{number}: " if len(frame.boxes) > 1 else ""
        score = "" if result is None else f"{result.score:.2f}"
        truth = frame.truth if number == 1 else None
        marks.append(Mark(box, name + score, lost=result is not None and result.lost, truth=truth))
    return marks
