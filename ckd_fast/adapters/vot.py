"""VOT's folder protocol for RGBT: the toolkit writes its requests into a folder and reads the answers from there.

    frames_color.txt, frames_ir.txt   image paths, one per line, the same number in both
    query_ID.txt                      a target: its first frame (from 0), its region there, then key=value lines
    output_ID.txt                     the answer: one region per frame, the given one first

Run it as `python -m ckd_fast.adapters.vot --weights FILE` in that folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ckd_fast.boxes import box_row
from ckd_fast.errors import InputError
from ckd_fast.files import writing
from ckd_fast.images import Image, read_rgb, read_tir
from ckd_fast.multi import MultiTracker
from ckd_fast.types import Box, TrackResult

from .program import run_program, toolkit_parser


@dataclass(frozen=True)
class Query:
    """A target: its name, its first frame, its box there."""

    name: str
    offset: int
    box: Box


@dataclass(frozen=True)
class VotFolder:
    """The toolkit's requests."""

    color: tuple[Path, ...]
    ir: tuple[Path, ...]
    queries: tuple[Query, ...]


def parse_region(text: str, where: str) -> Box:
    """A rectangle, or the rectangle around a polygon, as (x, y, w, h)."""
    if text.startswith("m"):
        raise InputError(f"{where}: a mask; ckd_fast tracks rectangles, so configure the toolkit to send these")
    try:
        numbers = [float(value) for value in text.split(",")]
    except ValueError as error:
        raise InputError(f"{where}: expected comma-separated numbers, got {text[:60]!r}") from error
    if len(numbers) == 4:
        return numbers[0], numbers[1], numbers[2], numbers[3]
    if len(numbers) >= 6 and len(numbers) % 2 == 0:
        xs, ys = numbers[0::2], numbers[1::2]
        return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    raise InputError(f"{where}: expected a rectangle (4 numbers) or a polygon (6 or more), got {len(numbers)}")


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); is this a VOT folder?") from error


def read_vot_folder(folder: Path) -> VotFolder:
    """Read and check the toolkit's files."""
    lists = []
    for name in ("frames_color.txt", "frames_ir.txt"):
        lines = _read_lines(folder / name)
        lists.append(tuple(folder / line.strip() for line in lines if line.strip()))
    color, ir = lists
    if len(color) != len(ir) or not color:
        raise InputError(f"{folder}: {len(color)} color and {len(ir)} ir frames; expected equally many, at least one")
    queries = []
    for path in sorted(folder.glob("query_*.txt")):
        lines = _read_lines(path)
        if len(lines) < 2 or not lines[0].strip().isdecimal():
            raise InputError(f"{path}: expected the frame's number in line 1 and a region in line 2")
        offset = int(lines[0])
        if offset >= len(color):
            raise InputError(f"{path}: frame {offset}, but there are {len(color)}")
        queries.append(Query(path.stem.removeprefix("query_"), offset, parse_region(lines[1].strip(), str(path))))
    if not queries:
        raise InputError(f"{folder}: no query_*.txt")
    return VotFolder(color, ir, tuple(queries))


def read_pair(color: Path, ir: Path, order: Literal["rgb", "bgr"]) -> tuple[Image, Image]:
    """A frame's images in the channel order that the tracker is configured for."""
    images = []
    for path, read in ((color, read_rgb), (ir, read_tir)):
        image = read(path)
        if image is None:
            raise InputError(f"{path}: cannot be read")
        # Both come in RGB order; thermal images of one channel have none.
        images.append(image[:, :, ::-1] if order == "bgr" and image.ndim == 3 else image)
    return images[0], images[1]


def advance(tracker: MultiTracker, rgb: Image, tir: Image, added: Sequence[Box]) -> dict[int, TrackResult]:
    """Find all targets in the next frame, then start on the added ones."""
    results = tracker.update(rgb, tir) if len(tracker) else {}
    for box in added:
        tracker.add(rgb, tir, box)
    return results


def track_vot_folder(folder: Path, tracker: MultiTracker) -> list[Path]:
    """Track the targets of all queries together, and write their output files."""
    requests = read_vot_folder(folder)
    # In the order in which the tracker gets them.
    queries = sorted(requests.queries, key=lambda query: query.offset)
    rows: list[list[Box]] = [[] for _ in queries]
    tracker.reset()
    for index, (color, ir) in enumerate(zip(requests.color, requests.ir, strict=True)):
        images = read_pair(color, ir, tracker.config.color)
        advance(tracker, *images, [query.box for query in queries if query.offset == index])
        for boxes, box in zip(rows, tracker.boxes.values(), strict=False):  # later queries have no box yet
            boxes.append(box)
    written = []
    for query, boxes in zip(queries, rows, strict=True):
        path = folder / f"output_{query.name}.txt"
        with writing(path):
            path.write_text("".join(box_row(box, "float") for box in boxes))
        written.append(path)
    return written


def main() -> int:
    parser = toolkit_parser("ckd_fast.adapters.vot", "Track for the VOT toolkit, folder protocol.")
    parser.add_argument("--folder", type=Path, default=Path(), help="the toolkit's folder (default: here)")
    return run_program(parser, lambda tracker, options: track_vot_folder(options.folder, tracker))


if __name__ == "__main__":
    sys.exit(main())
