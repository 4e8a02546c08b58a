"""VOT's folder protocol for RGBT, the one without TraX: the toolkit leaves files in a folder and reads others back.

    frames_color.txt, frames_ir.txt   one image path per line, equally many
    query_ID.txt                      line 1: the frame in which the target is given (0); line 2: its region;
                                      then key=value lines
    output_ID.txt                     written here: one region per frame, the given one first

Run it as `python -m ckd_fast.adapters.vot --weights FILE` in that folder.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from ckd_fast.errors import CkdFastError, InputError, OutputError
from ckd_fast.tracker import Tracker
from ckd_fast.types import Box
from ckd_fast.video.sources import read_rgb, read_tir


@dataclass(frozen=True)
class Query:
    """One target of the protocol: its name, the frame in which it is given, its region."""

    name: str
    offset: int
    box: Box


@dataclass(frozen=True)
class VotFolder:
    """What the toolkit left."""

    color: tuple[Path, ...]
    ir: tuple[Path, ...]
    queries: tuple[Query, ...]


def parse_region(text: str, where: str) -> Box:
    """A rectangle, or the rectangle around a polygon, as (x, y, w, h)."""
    if text.startswith("m"):
        raise InputError(f"{where}: a mask; ckd_fast reports rectangles, ask the toolkit for rectangle regions")
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


def track_vot_folder(folder: Path, tracker: Tracker) -> list[Path]:
    """Track every query and write its output file; trackers of several queries share the engine of `tracker`."""
    given = read_vot_folder(folder)
    trackers = [Tracker(engine=tracker.engine, config=tracker.config) for _ in given.queries]
    rows: list[list[Box]] = [[] for _ in given.queries]
    for index, paths in enumerate(zip(given.color, given.ir, strict=True)):
        frames = []
        for path, read in zip(paths, (read_rgb, read_tir), strict=True):
            image = read(path)
            if image is None:
                raise InputError(f"{path}: frame {index} cannot be read")
            # Both come in RGB order; thermal images of one channel have none.
            frames.append(image[:, :, ::-1] if tracker.config.color == "bgr" and image.ndim == 3 else image)
        for query, one, boxes in zip(given.queries, trackers, rows, strict=True):
            if index == query.offset:
                one.init(frames[0], frames[1], query.box)
                boxes.append(query.box)
            elif index > query.offset:
                boxes.append(one.update(*frames).box)
    written = []
    for query, boxes in zip(given.queries, rows, strict=True):
        path = folder / f"output_{query.name}.txt"
        try:
            path.write_text("".join(",".join(f"{value:.4f}" for value in box) + "\n" for box in boxes))
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror})") from error
        written.append(path)
    return written


def main() -> int:
    """`python -m ckd_fast.adapters.vot`."""
    parser = argparse.ArgumentParser(prog="python -m ckd_fast.adapters.vot", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="file of weights, or 'random'")
    parser.add_argument("--model", help="preset, where the weights do not settle it")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, default=Path(), help="the toolkit's folder (default: here)")
    options = parser.parse_args()
    try:
        tracker = Tracker(options.weights, options.model, options.engine, options.device)
        track_vot_folder(options.folder, tracker)
    except CkdFastError as error:
        sys.stderr.write(f"ckd_fast: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
