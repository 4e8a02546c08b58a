"""Check a data set before spending hours on it: what is there, missing, damaged or of another size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ckd_fast.errors import InputError, some_names
from ckd_fast.files import list_images, reading
from ckd_fast.images import decode

from .layouts import LAYOUTS
from .sequences import Dataset, SequenceFiles, mispaired, open_dataset

FindingKind = Literal["missing", "unreadable", "mis-sized", "unpaired", "truth"]
Size = tuple[int, int]  # width, height

READERS = 8  # threads
JPEG_END = b"\xff\xd9"
TAIL = 64  # bytes in which a JPEG must end; some cameras pad


@dataclass(frozen=True)
class Finding:
    """A fault of one sequence."""

    sequence: str
    kind: FindingKind
    text: str


@dataclass(frozen=True)
class SequenceCheck:
    """What is in one sequence, and its faults."""

    name: str
    frames: int
    visible_size: Size | None
    infrared_size: Size | None
    boxes: int
    empty_boxes: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class DatasetCheck:
    """All sequences, and remarks on the data set as a whole."""

    dataset: str
    root: Path
    sequences: tuple[SequenceCheck, ...]
    remarks: tuple[str, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(finding for sequence in self.sequences for finding in sequence.findings)

    @property
    def sizes(self) -> Mapping[Size, int]:
        """How many sequences have visible frames of a size."""
        return Counter(check.visible_size for check in self.sequences if check.visible_size is not None)


def detect(root: Path) -> Dataset:
    """Open a data set by trying all layouts. If several fit, the one with the published sequence count is taken."""
    fitting: list[Dataset] = []
    for layout in LAYOUTS:
        try:
            fitting.append(open_dataset(layout.name, root))
        except InputError:
            continue  # this layout does not fit
    if not fitting:
        known = ", ".join(layout.name for layout in LAYOUTS)
        raise InputError(f"{root}: no data set of a known layout ({known}); --dataset NAME tells what is missing")
    exact = [dataset for dataset in fitting if dataset.layout.published == len(dataset.sequences)]
    chosen = exact or fitting
    if len(chosen) > 1:
        names = ", ".join(dataset.layout.name for dataset in chosen)
        raise InputError(f"{root}: could be any of {names}; choose with --dataset")
    return chosen[0]


def image_size(path: Path) -> Size:
    """Width and height of an image, decoded as the tracker sees it; InputError if it is damaged."""
    image = decode(path, cv2.IMREAD_GRAYSCALE)  # faster than colour, and as thorough
    if image is None:
        raise InputError(f"{path}: damaged, or not an image")
    if path.suffix.lower() in (".jpg", ".jpeg"):
        # OpenCV 4 decodes a JPEG that was cut off and fills the rest with grey.
        with reading(path), path.open("rb") as file:
            length = file.seek(0, 2)
            file.seek(max(0, length - TAIL))
            if JPEG_END not in file.read():
                raise InputError(f"{path}: cut off after {length} bytes")
    return image.shape[1], image.shape[0]


def check_dataset(
    dataset: Dataset, *, on_sequence: Callable[[SequenceCheck], object] = lambda _check: None
) -> DatasetCheck:
    """Decode every image and read every ground truth; `on_sequence` is called after every sequence, for progress."""
    checks = []
    frameless = all(sequence.visible is None for sequence in dataset.sequences)
    with ThreadPoolExecutor(READERS) as readers:
        for sequence in dataset.sequences:
            checks.append(_check_sequence(sequence, readers, frameless=frameless))
            on_sequence(checks[-1])
    alone = ("no frames anywhere, only ground truths: enough for scoring, not for tracking",) if frameless else ()
    return DatasetCheck(dataset.layout.name, dataset.root, tuple(checks), (*dataset.remarks, *alone))


def _check_sequence(sequence: SequenceFiles, readers: ThreadPoolExecutor, *, frameless: bool) -> SequenceCheck:
    findings: list[Finding] = []

    def find(kind: FindingKind, text: str) -> None:
        findings.append(Finding(sequence.name, kind, text))

    if sequence.visible is None and not frameless:
        find("missing", "no folders of frames of both modalities")
    sizes: list[Size | None] = [None, None]
    listed: list[list[Path]] = [[], []]
    for number, folder in enumerate((sequence.visible, sequence.infrared)):
        if folder is None:
            continue
        try:
            images = list_images(folder)
        except InputError as error:
            find("missing", str(error))
            continue
        listed[number] = images
        sizes[number] = _common_size(images, readers, find)
    counts = [len(images) for images in listed]
    odd = mispaired(*listed)
    if counts[0] != counts[1]:
        find("unpaired", f"{counts[0]} visible and {counts[1]} infrared frames")
    elif odd:
        find("unpaired", odd)
    rows, empty = _check_truths(sequence, counts[0], sizes[0], find)
    return SequenceCheck(sequence.name, min(counts), sizes[0], sizes[1], rows, empty, tuple(findings))


def _common_size(
    images: list[Path], readers: ThreadPoolExecutor, find: Callable[[FindingKind, str], None]
) -> Size | None:
    """The size that most images have. Reports images of another size, and those that cannot be read."""

    def size_or_reason(path: Path) -> Size | str:
        try:
            return image_size(path)
        except InputError as error:
            return str(error)

    sizes: dict[Path, Size] = {}
    for path, size in zip(images, readers.map(size_or_reason, images), strict=True):
        if isinstance(size, str):
            find("unreadable", size)
        else:
            sizes[path] = size
    if not sizes:
        return None
    (width, height), _ = Counter(sizes.values()).most_common(1)[0]
    odd = [f"{path.name} {size[0]}x{size[1]}" for path, size in sizes.items() if size != (width, height)]
    if odd:
        folder = images[0].parent
        find("mis-sized", f"{folder}: {len(odd)} of {len(images)} are not {width}x{height}: {some_names(odd)}")
    return width, height


def _check_truths(
    sequence: SequenceFiles, frames: int, size: Size | None, find: Callable[[FindingKind, str], None]
) -> tuple[int, int]:
    """Check all ground truths. Returns the number of boxes, and of boxes without area, in the first."""
    readable = []
    for kind, file in sequence.truths.items():
        try:
            boxes = sequence.boxes(kind)
        except InputError as error:
            find("truth", str(error))
            continue
        readable.append(boxes)
        for fault in _truth_faults(boxes, sequence.step, frames, size):
            find("truth", f"{file.path.name}: {fault}")
    return (len(readable[0]), int((~_has_area(readable[0])).sum())) if readable else (0, 0)


def _has_area(boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.logical_and(np.isfinite(boxes).all(axis=1), (boxes[:, 2:] > 0).all(axis=1))


def _truth_faults(boxes: NDArray[np.float64], step: int, frames: int, size: Size | None) -> Iterator[str]:
    if frames and len(boxes) != -(-frames // step):
        yield f"{len(boxes)} boxes for {f'every {step}th of ' if step > 1 else ''}{frames} frames"
    if size is not None:
        rows = np.flatnonzero(_has_area(boxes))
        x, y, w, h = boxes[rows].T
        outside = rows[(x + w <= 0) | (y + h <= 0) | (x >= size[0]) | (y >= size[1])]
        if len(outside):
            yield f"{len(outside)} boxes lie outside the frame, first in line {outside[0] + 1}"
    if not _has_area(boxes[:1])[0]:
        yield "the first box has no area"
