"""Read RGBT data sets, published ones and your own: sequences, frames, ground truths.

    dataset = open_dataset("lasher", Path("LasHeR"))
    for sequence in dataset.sequences:
        sequence.frames()              # paths of the visible and infrared images, paired
        sequence.boxes("visible")      # [N, 4] x, y, w, h

Ground truths without frames can be opened too, for scoring; `frames()` is an error then. Oddities, such as a missing
sequence or an unexpected number of sequences, are listed in `Dataset.remarks`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ckd_fast.errors import InputError, some_names
from ckd_fast.files import list_images, natural_key, reading

from .attributes import read_attributes
from .layouts import DATASETS, LAYOUTS, TRUTH_KINDS, Layout, TruthKind
from .tables import read_names, read_table


@dataclass(frozen=True)
class TruthFile:
    """A file of boxes; with `corners`, its rows are x1 y1 x2 y2 instead of x, y, w, h."""

    path: Path
    corners: bool


@dataclass(frozen=True)
class FrameFiles:
    """Paths of paired images, in time order."""

    visible: tuple[Path, ...]
    infrared: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.visible)


@dataclass(frozen=True)
class SequenceFiles:
    name: str  # its name in lists and result files
    # folders of frames; None if there is only the ground truth
    visible: Path | None
    infrared: Path | None
    truths: Mapping[TruthKind, TruthFile]  # files of boxes, by kind
    attributes: frozenset[str]  # its challenges
    step: int = 1  # there is a box for every `step`-th frame

    def frames(self) -> FrameFiles:
        """The images of both modalities, paired in natural order."""
        if self.visible is None or self.infrared is None:
            raise InputError(f"{self.name}: no folders of frames, only a ground truth")
        visible, infrared = list_images(self.visible), list_images(self.infrared)
        if len(visible) != len(infrared):
            raise InputError(
                f"{self.name}: {len(visible)} visible and {len(infrared)} infrared images; expected equally many"
            )
        return FrameFiles(tuple(visible), tuple(infrared))

    def kind(self, *preferred: TruthKind) -> TruthKind:
        """The first available kind of truth: of the preferred ones, else of all."""
        for kind in (*preferred, *TRUTH_KINDS):
            if kind in self.truths:
                return kind
        raise InputError(f"{self.name}: no ground truth")

    def boxes(self, kind: TruthKind | None = None, *, inclusive: bool = False) -> NDArray[np.float64]:
        """Boxes [N, 4] as x, y, w, h, unrounded.

        Args:
            kind: which truth; None: the first available of init, visible, infrared.
            inclusive: if the file has corners, count the last pixel as part of the box, one wider and higher.
        """
        wanted = self.kind() if kind is None else kind
        if wanted not in self.truths:
            raise InputError(f"{self.name}: no {wanted} ground truth; available: {', '.join(self.truths) or 'none'}")
        file = self.truths[wanted]
        values = read_table(file.path).values
        if values.shape[1] == 8:
            return corners_to_boxes(values, inclusive=inclusive)
        if values.shape[1] != 4:
            raise InputError(f"{file.path}: {values.shape[1]} numbers per line; expected 4 (a box) or 8 (its corners)")
        return corners_to_boxes(values, inclusive=inclusive) if file.corners else values

    def frame_of_row(self, row: int) -> int:
        """The frame that a row of the ground truth belongs to."""
        return row * self.step


def corners_to_boxes(corners: NDArray[np.float64], *, inclusive: bool = False) -> NDArray[np.float64]:
    """The upright boxes [N, 4] (x, y, w, h) around two corners [N, 4] or four corners [N, 8]."""
    x, y = corners[:, 0::2], corners[:, 1::2]
    left, top = x.min(axis=1), y.min(axis=1)
    extra = 1.0 if inclusive else 0.0
    return np.stack([left, top, x.max(axis=1) - left + extra, y.max(axis=1) - top + extra], axis=1)


def mispaired(first: Sequence[Path], second: Sequence[Path]) -> str:
    """Describe pairs whose file names have different numbers, which happens where an image is missing.

    A pair counts only if the other folder has one of its numbers elsewhere: two cameras' time stamps, for example, have
    no number in common. Returns an empty string if nothing is wrong.
    """
    numbers = [[re.findall(r"\d+", path.stem) for path in paths] for paths in (first, second)]
    mine, theirs = ([int(found[-1]) if found else None for found in side] for side in numbers)
    shared = (set(mine) & set(theirs)) - {None}
    pairs = enumerate(zip(mine, theirs, strict=False))  # callers report unequal counts themselves
    odd = [index for index, pair in pairs if pair[0] != pair[1] and shared.intersection(pair)]
    if not odd:
        return ""
    at = odd[0]
    return f"{len(odd)} pairs have different numbers, first {first[at].name} with {second[at].name}"


@dataclass(frozen=True)
class Dataset:
    layout: Layout  # of its files
    root: Path  # its folder
    sequences: tuple[SequenceFiles, ...]  # in the order of the published list, else by name
    attributes: tuple[str, ...]  # names of all challenges, in the published order
    remarks: tuple[str, ...]  # what the user should know about it
    names: tuple[str, ...]  # of all sequences, including those that `select` left out

    def sequence(self, name: str) -> SequenceFiles:
        for sequence in self.sequences:
            if sequence.name == name:
                return sequence
        raise InputError(f"{name}: no sequence of {self.layout.title} in {self.root}")

    def select(self, names: tuple[str, ...]) -> Dataset:
        """The same data set with these sequences only."""
        chosen = tuple(self.sequence(name) for name in dict.fromkeys(names))
        return dataclasses.replace(self, sequences=chosen)


def layout_of(name: str) -> Layout:
    for layout in LAYOUTS:
        if layout.name == name:
            return layout
    raise InputError(f"data set {name!r}: known are {', '.join(DATASETS)}")


def open_dataset(
    name: str, root: str | os.PathLike[str] | None = None, environ: Mapping[str, str] = os.environ
) -> Dataset:
    """Find the sequences of a data set.

    Args:
        name: one of `DATASETS`; "folder" is your own data: a folder with `visible/`, `infrared/` and `groundtruth.txt`,
            or a folder of such folders.
        root: the data set's folder; None: from its environment variable (docs/environment.md).
        environ: the environment variables.
    """
    layout = layout_of(name)
    given = root if root is not None else environ.get(layout.variable)
    if not given:
        hint = f" or the environment variable {layout.variable}" if layout.variable else ""
        raise InputError(f"{layout.title}: name its folder by --root{hint}")
    folder = Path(given)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected the folder of {layout.title}")
    found = _find(layout, folder)
    if not found.sequences:
        expected = ", ".join(
            f"{part or '.'}/SEQUENCE/{file}" for part in layout.parts for file in layout.truths.values()
        )
        raise InputError(f"{folder}: no sequences of {layout.title}; looked for {expected}")
    return found


def _find(layout: Layout, root: Path) -> Dataset:
    with reading(root):
        folders = _sequence_folders(layout, root)
        names, listed_in = _names(layout, root, folders.by_name)
    attributes = read_attributes(layout, root)
    sequences, absent = [], []
    for name in names:
        folder = folders.by_name.get(name)
        truths = _truths(layout, root, folder, name)
        if truths:
            frames = (folder / layout.visible, folder / layout.infrared) if folder else ()
            visible, infrared = frames if frames and all(map(Path.is_dir, frames)) else (None, None)
            flags = attributes.of_sequence.get(name, frozenset())
            sequences.append(SequenceFiles(name, visible, infrared, truths, flags, layout.step))
        else:
            absent.append(name)
    found = tuple(sequence.name for sequence in sequences)
    bare = [name for name in folders.without_truth if name not in absent and name not in folders.by_name]
    flagless = [name for name in found if name not in attributes.of_sequence] if attributes.names else []
    groups = (
        (folders.twice, "exist twice; the first of each is used"),
        (bare, "have frames but no ground truth and are left out"),
        (flagless, "have no attribute flags"),
        (absent, f"of {listed_in} have no ground truth in {root}"),
    )
    remarks = [attributes.remark] if attributes.remark else []
    remarks += [f"{len(some)} sequences {text}: {some_names(some)}" for some, text in groups if some]
    if layout.published is not None and found and len(found) != layout.published:
        remarks.append(f"{len(found)} sequences found; {layout.title} was published with {layout.published}")
    return Dataset(layout, root, tuple(sequences), attributes.names, tuple(remarks), found)


@dataclass
class _Folders:
    """Folders of sequences: those with a ground truth by name; names that exist twice; those with frames alone."""

    by_name: dict[str, Path] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)
    without_truth: list[str] = field(default_factory=list)


def _sequence_folders(layout: Layout, root: Path) -> _Folders:
    """Look into the parts of the layout, in order, until one has sequences."""
    if layout.name == "folder" and _has_truth(layout, root):
        return _Folders({root.resolve().name: root})
    for part in layout.parts:
        folders = _Folders()
        homes = sorted(root.glob(part)) if "*" in part else [root / part]
        entries = [entry for home in homes if home.is_dir() for entry in sorted(home.iterdir(), key=_by_name)]
        for entry in filter(Path.is_dir, entries):
            if not _has_truth(layout, entry):
                if (entry / layout.visible).is_dir() or (entry / layout.infrared).is_dir():
                    folders.without_truth.append(entry.name)
            elif entry.name in folders.by_name:
                folders.twice.append(entry.name)
            else:
                folders.by_name[entry.name] = entry
        if folders.by_name:
            return folders
    return _Folders()


def _by_name(path: Path) -> list[tuple[int, int | str]]:
    return natural_key(path.name)


def _has_truth(layout: Layout, folder: Path) -> bool:
    return any((folder / file).is_file() for file in layout.truths.values())


def _names(layout: Layout, root: Path, folders: Mapping[str, Path]) -> tuple[list[str], str]:
    """Names of the sequences, and the file that lists them; without a list, those that are found."""
    for file in layout.lists:
        if (root / file).is_file():
            return list(dict.fromkeys(read_names(root / file))), file
    if folders or not layout.flat:
        return list(folders), "the folder"
    before, _, after = Path(layout.flat).name.partition("{name}")
    home = (root / layout.flat).parent
    stems = [path.name[len(before) : -len(after)] for path in home.glob(f"{before}*{after}")] if home.is_dir() else []
    return sorted(stems, key=natural_key), "the folder"


def _truths(layout: Layout, root: Path, folder: Path | None, name: str) -> Mapping[TruthKind, TruthFile]:
    found: dict[TruthKind, TruthFile] = {}
    if folder is not None:
        for kind, file in layout.truths.items():
            if (folder / file).is_file():
                found[kind] = TruthFile(folder / file, kind in layout.corners)
    flat = root / layout.flat.format(name=name)
    if layout.flat and not found and flat.is_file():
        found["init"] = TruthFile(flat, corners=False)
    return found
