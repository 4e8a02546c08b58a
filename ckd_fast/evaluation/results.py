"""Read a tracker's result files: a folder of SEQUENCE.txt, named after the tracker, with times in SEQUENCE_time.txt.

Anything wrong with them becomes a named `Problem`; no sequence disappears silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ckd_fast.datasets.sequences import corners_to_boxes
from ckd_fast.datasets.tables import Table, read_table
from ckd_fast.errors import InputError, some_names
from ckd_fast.files import reading

BoxFormat = Literal["ltwh", "ltrb", "centre"]
BOX_FORMATS: tuple[BoxFormat, ...] = ("ltwh", "ltrb", "centre")
ProblemKind = Literal[
    "empty folder", "missing sequence", "unknown sequence", "unreadable", "wrong columns", "mixed formats",
    "not finite", "without area", "short", "long", "no truth",
]  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """Something that a reader of a tracker's score must know."""

    tracker: str
    kind: ProblemKind
    sequences: tuple[str, ...]  # that it concerns; empty for the whole folder
    text: str


Report = Callable[[ProblemKind, Sequence[str], str], None]  # kind, sequences, description


@dataclass(frozen=True)
class TrackerResults:
    name: str  # of the tracker
    boxes: Mapping[str, NDArray[np.float64]]  # rows as written, [N, 4] or [N, 8], by sequence, without unusable files
    seconds: Mapping[str, NDArray[np.float64]]  # seconds per frame by sequence, where there are usable time files
    problems: tuple[Problem, ...]  # everything wrong with the files

    @property
    def fps(self) -> float | None:
        """Frames per second, without the first frame (the initialisation); None without times."""
        tracked = [times[1:] for times in self.seconds.values() if len(times) > 1]
        total = sum(float(times.sum()) for times in tracked)
        return sum(map(len, tracked)) / total if total > 0 else None


def tracker_names(folders: Sequence[Path]) -> list[str]:
    """Folder names; equal ones get as many parent folders in front as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    names = []
    for index, path in enumerate(parts):
        others = parts[:index] + parts[index + 1 :]
        if path in others:
            raise InputError(f"{folders[index]}: given twice")
        depth = 1
        while any(other[-depth:] == path[-depth:] for other in others):
            depth += 1
        names.append("/".join(path[-depth:]))
    return names


def read_results(folder: Path, name: str, sequences: Sequence[str], known: Sequence[str] = ()) -> TrackerResults:
    """Read a tracker's results on these sequences; results on `known`, the data set's other ones, are ignored."""
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {what}; expected a folder of SEQUENCE.txt files named after the tracker")
    problems: list[Problem] = []

    def report(kind: ProblemKind, concerned: Sequence[str], text: str) -> None:
        problems.append(Problem(name, kind, tuple(concerned), text))

    with reading(folder):
        entries = sorted(folder.iterdir())
    names = {*sequences, *known}
    box_files, time_files = _sort_files(entries, names)
    boxes: dict[str, NDArray[np.float64]] = {}
    seconds: dict[str, NDArray[np.float64]] = {}
    if not box_files:
        inside = [path.name for path in entries if path.is_dir()]
        hint = f"; it has the folders {some_names(inside)}: is one of them meant?" if inside else ""
        report("empty folder", (), f"{folder} has no SEQUENCE.txt files{hint}")
    else:
        missing = [sequence for sequence in sequences if sequence not in box_files]
        if missing:
            report("missing sequence", missing, f"no result of {len(missing)} of {len(sequences)} sequences")
        unknown = [stem for stem in box_files if stem not in names]
        if unknown:
            report("unknown sequence", unknown, f"{len(unknown)} files of sequences that the data set does not have")
        boxes = _read_boxes({stem: box_files[stem] for stem in sequences if stem in box_files}, report)
        seconds = _read_times({stem: path for stem, path in time_files.items() if stem in boxes}, report)
    return TrackerResults(name, boxes, seconds, tuple(problems))


def _sort_files(entries: Sequence[Path], names: set[str]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Files of boxes and files of times, by sequence. A sequence may itself be named SOMETHING_time."""
    files = {path.stem: path for path in entries if path.suffix == ".txt"}
    times = {}
    for stem, path in files.items():
        sequence = stem.removesuffix("_time")
        if sequence != stem and stem not in names and (sequence in files or sequence in names):
            times[sequence] = path
    boxes = {stem: path for stem, path in files.items() if stem in names or stem.removesuffix("_time") not in times}
    return boxes, times


def _read(path: Path, sequence: str, report: Report) -> Table | None:
    try:
        return read_table(path)
    except InputError as error:
        report("unreadable", [sequence], str(error))
        return None


def _read_boxes(files: Mapping[str, Path], report: Report) -> dict[str, NDArray[np.float64]]:
    boxes: dict[str, NDArray[np.float64]] = {}
    by_format: dict[tuple[int, str], list[str]] = {}  # sequences by number of columns and separator
    for sequence, path in files.items():
        table = _read(path, sequence, report)
        if table is None:
            continue
        rows, columns = table.values.shape
        if columns not in (4, 8):
            report("wrong columns", [sequence], f"{columns} columns; expected 4 (a box) or 8 (its corners)")
            continue
        if len(table.separators) > 1:
            report("mixed formats", [sequence], f"lines separated by {' and by '.join(table.separators)}")
        by_format.setdefault((columns, table.separators[0]), []).append(sequence)
        not_finite = int((~np.isfinite(table.values)).any(axis=1).sum())
        if not_finite:
            report("not finite", [sequence], f"{not_finite} of {rows} rows have NaN or infinity and count as misses")
        boxes[sequence] = table.values
    if len(by_format) > 1:
        rarest_first = sorted(by_format.items(), key=lambda item: len(item[1]))
        described = "; ".join(
            f"{columns} numbers by {separator} in {len(sequences)} ({some_names(sequences)})"
            for (columns, separator), sequences in rarest_first
        )
        rare = [sequence for _, sequences in rarest_first[:-1] for sequence in sequences]
        report("mixed formats", rare, f"files differ: {described}")
    return boxes


def _read_times(files: Mapping[str, Path], report: Report) -> dict[str, NDArray[np.float64]]:
    seconds: dict[str, NDArray[np.float64]] = {}
    for sequence, path in files.items():
        table = _read(path, sequence, report)
        if table is None:
            continue
        if table.values.shape[1] != 1 or not np.isfinite(table.values).all() or (table.values < 0).any():
            report("unreadable", [sequence], f"{path}: expected one time in seconds per line")
            continue
        seconds[sequence] = table.values[:, 0]
    return seconds


def to_boxes(rows: NDArray[np.float64], form: BoxFormat, *, inclusive: bool) -> NDArray[np.float64]:
    """Convert result rows to [N, 4] x, y, w, h.

    Args:
        rows: [N, 8] corners, or [N, 4] boxes.
        form: what four numbers mean: left, top, width, height; left, top, right, bottom; or centre, width, height.
        inclusive: whether a box given by corners includes its last pixel.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # infinities are reported elsewhere, as misses
        if rows.shape[1] == 8 or form == "ltrb":
            return corners_to_boxes(rows, inclusive=inclusive)
        if form == "centre":
            return np.concatenate([rows[:, :2] - rows[:, 2:] / 2, rows[:, 2:]], axis=1)
    return rows
