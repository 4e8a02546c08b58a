"""The published RGBT data sets as their authors lay them out, and own data: sequences, frames, ground truths.

    dataset = open_dataset("lasher", Path("LasHeR"))
    for sequence in dataset.sequences:
        sequence.frames()              # paths of the visible and infrared images, paired
        sequence.boxes("visible")      # [N, 4] x, y, w, h

Nothing here knows of training or evaluation. A folder that holds the ground truths alone opens as well; asking such a
sequence for frames is an error that says so. What deserves a word (a sequence of the list that is not there, a count
that differs from the published one) is in `Dataset.remarks`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ckd_fast.errors import InputError, some_names
from ckd_fast.files import list_images, natural_key

from .layouts import DATASETS, LAYOUTS, TRUTH_KINDS, Layout, TruthKind
from .tables import read_names, read_table, read_text


@dataclass(frozen=True)
class TruthFile:
    """One file of boxes: `corners` says that its rows are x1 y1 x2 y2 instead of x, y, w, h."""

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
    """One sequence.

    Attributes:
        name: its name in lists and result files.
        visible, infrared: folders of frames; None where only the ground truth is there.
        truths: files of boxes by kind, those that are there.
        attributes: names of the challenges it has.
        step: frames per box.
    """

    name: str
    visible: Path | None
    infrared: Path | None
    truths: Mapping[TruthKind, TruthFile]
    attributes: frozenset[str]
    step: int = 1

    def frames(self) -> FrameFiles:
        """The images of both modalities, paired in natural order; unequal counts are an error."""
        if self.visible is None or self.infrared is None:
            raise InputError(f"{self.name}: no folders of frames; this root has the ground truth alone")
        visible, infrared = list_images(self.visible), list_images(self.infrared)
        if len(visible) != len(infrared):
            raise InputError(
                f"{self.name}: {len(visible)} visible and {len(infrared)} infrared images; expected equally many"
            )
        return FrameFiles(tuple(visible), tuple(infrared))

    def kind(self, *preferred: TruthKind) -> TruthKind:
        """The first of these kinds of truth, then of all, that is there."""
        for kind in (*preferred, *TRUTH_KINDS):
            if kind in self.truths:
                return kind
        raise InputError(f"{self.name}: no ground truth")

    def boxes(self, kind: TruthKind | None = None, *, inclusive: bool = False) -> NDArray[np.float64]:
        """Boxes [N, 4] as x, y, w, h, unrounded.

        Args:
            kind: which truth; None is the first there is of init, visible, infrared.
            inclusive: where the file has corners, the last pixel belongs to the box: one wider and higher.
        """
        wanted = self.kind() if kind is None else kind
        if wanted not in self.truths:
            raise InputError(f"{self.name}: no {wanted} ground truth, there is {', '.join(self.truths) or 'none'}")
        file = self.truths[wanted]
        values = read_table(file.path).values
        if values.shape[1] == 8:
            return corners_to_boxes(values, inclusive=inclusive)
        if values.shape[1] != 4:
            raise InputError(f"{file.path}: {values.shape[1]} numbers a line; expected 4 (a box) or 8 (its corners)")
        return corners_to_boxes(values, inclusive=inclusive) if file.corners else values

    def frame_of_row(self, row: int) -> int:
        """Index of the frame that a row of the truth belongs to."""
        return row * self.step


def corners_to_boxes(corners: NDArray[np.float64], *, inclusive: bool = False) -> NDArray[np.float64]:
    """The upright box around two or four corners: [N, 4] or [N, 8] to x, y, w, h."""
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
    """A data set that was found.

    Attributes:
        layout: how it is laid out.
        root: its folder.
        sequences: in the order of the published list, else by name.
        attributes: names of all challenges, in the published order.
        remarks: what a user should know about what is there.
        names: of all its sequences, also those that `select` left out.
    """

    layout: Layout
    root: Path
    sequences: tuple[SequenceFiles, ...]
    attributes: tuple[str, ...]
    remarks: tuple[str, ...]
    names: tuple[str, ...]

    def sequence(self, name: str) -> SequenceFiles:
        """A sequence by name."""
        for sequence in self.sequences:
            if sequence.name == name:
                return sequence
        raise InputError(f"{name}: no sequence of {self.layout.title} in {self.root}")

    def select(self, names: tuple[str, ...]) -> Dataset:
        """The same with some sequences alone; one that is named twice is there once."""
        chosen = tuple(self.sequence(name) for name in dict.fromkeys(names))
        return dataclasses.replace(self, sequences=chosen)


def layout_of(name: str) -> Layout:
    """A layout by name."""
    for layout in LAYOUTS:
        if layout.name == name:
            return layout
    raise InputError(f"data set {name!r}: known are {', '.join(DATASETS)}")


def open_dataset(
    name: str, root: str | os.PathLike[str] | None = None, environ: Mapping[str, str] = os.environ
) -> Dataset:
    """Find the sequences of a data set.

    Args:
        name: one of `DATASETS`; "folder" is own data: `visible/`, `infrared/` and `groundtruth.txt`, or a folder of
            such folders.
        root: the data set's folder; None takes it from the environment (docs/environment.md).
        environ: where the variable is looked up.
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
    try:
        folders, twice, bare = _sequence_folders(layout, root)
        names, listed_in = _names(layout, root, folders)
    except OSError as error:
        raise InputError(f"{root}: cannot be read ({error.strerror or error})") from error
    attributes, of_sequence, remarks = _attributes(layout, root)
    sequences, absent = [], []
    for name in names:
        truths = _truths(layout, root, folders.get(name), name)
        if not truths:
            absent.append(name)
            continue
        home = folders.get(name)
        visible, infrared = (home / layout.visible, home / layout.infrared) if home else (None, None)
        if visible is None or infrared is None or not (visible.is_dir() and infrared.is_dir()):
            visible = infrared = None
        sequences.append(
            SequenceFiles(name, visible, infrared, truths, of_sequence.get(name, frozenset()), layout.step)
        )
    if twice:
        remarks.append(f"{len(twice)} sequences are there twice, the first is taken: {some_names(twice)}")
    bare = [name for name in bare if name not in absent and name not in folders]
    if bare:
        remarks.append(f"{len(bare)} folders have frames but no ground truth and are left out: {some_names(bare)}")
    flagless = [one.name for one in sequences if one.name not in of_sequence]
    if attributes and flagless:
        remarks.append(f"{len(flagless)} sequences have no attribute flags: {some_names(flagless)}")
    if absent:
        remarks.append(f"{len(absent)} sequences of {listed_in} have no ground truth in {root}: {some_names(absent)}")
    if layout.published is not None and sequences and len(sequences) != layout.published:
        remarks.append(f"{len(sequences)} sequences found; {layout.title} was published with {layout.published}")
    found = tuple(one.name for one in sequences)
    return Dataset(layout, root, tuple(sequences), attributes, tuple(remarks), found)


def _part_folders(layout: Layout, root: Path) -> Iterator[list[Path]]:
    for part in layout.parts:
        yield sorted(root.glob(part)) if "*" in part else [root / part]


def _sequence_folders(layout: Layout, root: Path) -> tuple[dict[str, Path], list[str], list[str]]:
    """Folders with a ground truth, by name, from the first part of the layout that has any.

    Beside them the names that are there twice, and of those that have frames but no ground truth.
    """
    if layout.name == "folder" and _has_truth(layout, root):
        return {root.resolve().name: root}, [], []
    for parts in _part_folders(layout, root):
        found: dict[str, Path] = {}
        twice: list[str] = []
        bare: list[str] = []
        for part in parts:
            if not part.is_dir():
                continue
            for entry in sorted(part.iterdir(), key=lambda path: natural_key(path.name)):
                if not entry.is_dir():
                    continue
                if not _has_truth(layout, entry):
                    if (entry / layout.visible).is_dir() or (entry / layout.infrared).is_dir():
                        bare.append(entry.name)
                elif entry.name in found:
                    twice.append(entry.name)
                else:
                    found[entry.name] = entry
        if found:
            return found, twice, bare
    return {}, [], []


def _has_truth(layout: Layout, folder: Path) -> bool:
    return any((folder / file).is_file() for file in layout.truths.values())


def _names(layout: Layout, root: Path, folders: Mapping[str, Path]) -> tuple[list[str], str]:
    """Names of the sequences and the file that lists them; without a list, what is there."""
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


def _flags(path: Path) -> list[bool]:
    cells = read_text(path).replace(",", " ").split()
    if set(cells) - {"0", "1"}:
        raise InputError(f"{path}: expected 0 or 1 per entry, got {sorted(set(cells) - {'0', '1'})[:3]}")
    return [cell == "1" for cell in cells]


def _attributes(layout: Layout, root: Path) -> tuple[tuple[str, ...], Mapping[str, frozenset[str]], list[str]]:
    """Names of all attributes, those of each sequence, and remarks; nothing where the files are not there."""
    order = root / layout.attribute_order
    if layout.attribute_flags and (root / layout.attribute_flags).is_dir():
        if not order.is_file():
            return (), {}, [f"no attributes: {layout.attribute_flags} is there, {layout.attribute_order} is not"]
        names = tuple(read_text(order).replace(",", " ").split())
        of_sequence = {}
        for path in sorted((root / layout.attribute_flags).glob("*.txt")):
            flags = _flags(path)
            if len(flags) != len(names):
                raise InputError(f"{path}: {len(flags)} flags; {order} names {len(names)} attributes")
            of_sequence[path.stem] = frozenset(name for name, flag in zip(names, flags, strict=True) if flag)
        return names, of_sequence, []
    folder = root / layout.attribute_files
    # The flags follow the list beside them, which is not always that of the data set: RGBT210 ships RGBT234's.
    listed = folder / "SequencesName.txt"
    if not layout.attribute_files or not folder.is_dir():
        return (), {}, []
    if not listed.is_file():
        return (), {}, [f"no attributes: {layout.attribute_files} is there, {listed.relative_to(root)} is not"]
    sequences = read_names(listed)
    files = sorted(path for path in folder.glob("*.txt") if path != listed)
    has: dict[str, set[str]] = {name: set() for name in sequences}
    for path in files:
        flags = _flags(path)
        if len(flags) != len(sequences):
            raise InputError(f"{path}: {len(flags)} flags; {listed} names {len(sequences)} sequences")
        for name, flag in zip(sequences, flags, strict=True):
            if flag:
                has[name].add(path.stem)
    return tuple(path.stem for path in files), {name: frozenset(names) for name, names in has.items()}, []
