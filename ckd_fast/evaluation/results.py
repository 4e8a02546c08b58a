"""Result files of trackers: a folder of SEQUENCE.txt, named after the tracker, with times in SEQUENCE_time.txt.

Whatever is wrong with one is a `Problem` with a name, never a sequence that silently disappears.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ckd_fast.datasets.sequences import corners_to_boxes
from ckd_fast.datasets.tables import read_table
from ckd_fast.errors import InputError, some_names

BoxFormat = Literal["ltwh", "ltrb", "centre"]
BOX_FORMATS: tuple[BoxFormat, ...] = ("ltwh", "ltrb", "centre")
ProblemKind = Literal[
    "empty folder",
    "missing sequence",
    "unknown sequence",
    "unreadable",
    "wrong columns",
    "mixed formats",
    "not finite",
    "without area",
    "short",
    "long",
    "no truth",
]


@dataclass(frozen=True)
class Problem:
    """Something about a tracker's results that a reader of its score must know.

    Attributes:
        tracker: whose.
        kind: what.
        sequences: of which sequences; empty if of the whole folder.
        text: in words.
    """

    tracker: str
    kind: ProblemKind
    sequences: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class TrackerResults:
    """What one folder of results holds.

    Attributes:
        name: of the tracker.
        boxes: rows as written, [N, 4] or [N, 8], by sequence; unusable files are left to `problems`.
        seconds: per frame, by sequence; of some sequences or none.
        problems: of the files.
    """

    name: str
    boxes: Mapping[str, NDArray[np.float64]]
    seconds: Mapping[str, NDArray[np.float64]]
    problems: tuple[Problem, ...]

    @property
    def fps(self) -> float | None:
        """Frames per second, without the first frame of each sequence (the initialisation); None without times."""
        rows = [times[1:] for times in self.seconds.values() if len(times) > 1]
        spent = sum(float(times.sum()) for times in rows)
        return sum(map(len, rows)) / spent if spent > 0 else None


def tracker_names(folders: Sequence[Path]) -> list[str]:
    """Folder names; where two are the same, with as much of the path in front as tells them apart."""
    parts = [folder.resolve().parts for folder in folders]
    names = []
    for index, mine in enumerate(parts):
        others = parts[:index] + parts[index + 1 :]
        if mine in others:
            raise InputError(f"{folders[index]}: given twice")
        depth = 1
        while any(other[-depth:] == mine[-depth:] for other in others):
            depth += 1
        names.append("/".join(mine[-depth:]))
    return names


def read_results(folder: Path, name: str, sequences: Sequence[str], known: Sequence[str] = ()) -> TrackerResults:
    """Read the results of one tracker.

    Args:
        folder: with SEQUENCE.txt files.
        name: of the tracker.
        sequences: names of those to read.
        known: names of others that the data set has; their results are nothing odd.
    """
    if not folder.is_dir():
        what = "not a folder" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {what}; expected a folder of SEQUENCE.txt files named after the tracker")
    names = {*sequences, *known}
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror or error})") from error
    files = {path.stem: path for path in entries if path.suffix == ".txt"}
    times = {
        stem.removesuffix("_time"): path
        for stem, path in files.items()
        if stem.endswith("_time") and stem not in names and stem.removesuffix("_time") in {*files, *names}
    }
    results = {stem: path for stem, path in files.items() if stem in names or stem.removesuffix("_time") not in times}
    problems: list[Problem] = []

    def problem(kind: ProblemKind, of: Sequence[str], text: str) -> None:
        problems.append(Problem(name, kind, tuple(of), text))

    if not results:
        inside = [path.name for path in entries if path.is_dir()]
        hint = f"; it has the folders {some_names(inside)}: is one of them meant?" if inside else ""
        problem("empty folder", (), f"{folder} has no SEQUENCE.txt files{hint}")
        return TrackerResults(name, {}, {}, tuple(problems))
    missing = [sequence for sequence in sequences if sequence not in results]
    if missing:
        problem("missing sequence", missing, f"no result of {len(missing)} of {len(sequences)} sequences")
    unknown = [stem for stem in results if stem not in names]
    if unknown:
        problem("unknown sequence", unknown, f"{len(unknown)} files of sequences that the data set does not have")

    boxes: dict[str, NDArray[np.float64]] = {}
    forms: dict[tuple[int, str], list[str]] = {}
    for sequence in sequences:
        if sequence not in results:
            continue
        try:
            table = read_table(results[sequence])
        except InputError as error:
            problem("unreadable", [sequence], str(error))
            continue
        columns = table.values.shape[1]
        if columns not in (4, 8):
            text = f"{columns} columns; expected 4 (a box) or 8 (its corners)"
            problem("wrong columns", [sequence], text)
            continue
        if len(table.separators) > 1:
            problem("mixed formats", [sequence], f"lines separated by {' and by '.join(table.separators)}")
        forms.setdefault((columns, table.separators[0]), []).append(sequence)
        odd = int((~np.isfinite(table.values)).any(axis=1).sum())
        if odd:
            problem("not finite", [sequence], f"{odd} of {len(table.values)} rows have NaN or infinity: misses")
        boxes[sequence] = table.values
    if len(forms) > 1:
        described = "; ".join(
            f"{columns} numbers by {separator} in {len(names)} ({some_names(names)})"
            for (columns, separator), names in sorted(forms.items(), key=lambda item: len(item[1]))
        )
        rare = [n for names in sorted(forms.values(), key=len)[:-1] for n in names]
        problem("mixed formats", rare, f"files differ: {described}")

    seconds: dict[str, NDArray[np.float64]] = {}
    for sequence, path in times.items():
        if sequence not in boxes:
            continue
        try:
            table = read_table(path)
        except InputError as error:
            problem("unreadable", [sequence], str(error))
            continue
        values = table.values[:, 0]
        if table.values.shape[1] != 1 or not np.isfinite(values).all() or (values < 0).any():
            problem("unreadable", [sequence], f"{path}: expected one time in seconds a line")
            continue
        seconds[sequence] = values
    return TrackerResults(name, boxes, seconds, tuple(problems))


def to_boxes(rows: NDArray[np.float64], form: BoxFormat, *, inclusive: bool) -> NDArray[np.float64]:
    """Result rows to [N, 4] x, y, w, h.

    Args:
        rows: [N, 8], corners, or [N, 4], boxes.
        form: of rows of four: left, top, width, height; left, top, right, bottom; or centre, width, height.
        inclusive: the last pixel belongs to a box from corner to corner.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # infinities are misses, and named elsewhere
        if rows.shape[1] == 8 or form == "ltrb":
            return corners_to_boxes(rows, inclusive=inclusive)
        if form == "centre":
            return np.concatenate([rows[:, :2] - rows[:, 2:] / 2, rows[:, 2:]], axis=1)
    return rows
