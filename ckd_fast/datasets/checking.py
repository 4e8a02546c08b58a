"""Look through a data set before hours are spent on it: what is there, missing, unreadable or of another size.

Of an image only the header and the last bytes are read, which tells its size and whether it was cut off; with `decode`
every one is decoded.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from ckd_fast.errors import InputError

from .files import list_images, mispaired
from .layouts import LAYOUTS
from .sequences import Dataset, SequenceFiles, open_dataset

FindingKind = Literal["missing", "unreadable", "mis-sized", "unpaired", "truth"]
Size = tuple[int, int]  # width, height

READERS = 8  # threads; the work is waiting for a disk or a network
TAIL = 64  # bytes at the end in which a picture's end mark must be; some cameras pad
MOST_SEGMENTS = 1000  # of a JPEG before its size: a hostile file must not keep us
NO_SIZE_MARKERS = frozenset({0xC4, 0xC8, 0xCC})
SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with one sequence."""

    sequence: str
    kind: FindingKind
    text: str


@dataclass(frozen=True)
class SequenceCheck:
    """One sequence: its frames, sizes by modality, boxes, and what is wrong."""

    name: str
    frames: int
    visible_size: Size | None
    infrared_size: Size | None
    boxes: int
    empty_boxes: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class DatasetCheck:
    """All sequences, and what the reader had to say."""

    dataset: str
    root: Path
    sequences: tuple[SequenceCheck, ...]
    remarks: tuple[str, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Of all sequences."""
        return tuple(finding for sequence in self.sequences for finding in sequence.findings)

    @property
    def sizes(self) -> Mapping[Size, int]:
        """Sequences by the size of their visible frames."""
        return Counter(one.visible_size for one in self.sequences if one.visible_size is not None)


def detect(root: Path) -> Dataset:
    """Open a folder without being told what it is; where several layouts fit, the published counts decide."""
    fitting: list[Dataset] = []
    for layout in LAYOUTS:
        try:
            fitting.append(open_dataset(layout.name, root))
        except InputError:
            continue  # this layout does not fit
    if not fitting:
        known = ", ".join(layout.name for layout in LAYOUTS)
        raise InputError(
            f"{root}: no data set of a known layout ({known}); name it by --dataset to hear what is missing"
        )
    exact = [one for one in fitting if one.layout.published == len(one.sequences)]
    chosen = exact or fitting
    if len(chosen) > 1:
        names = ", ".join(one.layout.name for one in chosen)
        raise InputError(f"{root}: could be any of {names}; name it by --dataset")
    return chosen[0]


def image_size(path: Path) -> Size:
    """Width and height from an image's header; InputError where it is none or was cut off."""
    try:
        with path.open("rb") as file:
            start = file.read(26)
            if start.startswith(b"\xff\xd8"):
                size = _jpeg_size(file)
                mark = b"\xff\xd9"
            elif start.startswith(b"\x89PNG\r\n\x1a\n") and len(start) == 26:
                size, mark = struct.unpack(">II", start[16:24]), b"IEND"
            elif start.startswith(b"BM") and len(start) == 26:
                width, height = struct.unpack("<ii", start[18:26])
                size, mark = (width, abs(height)), b""
            else:
                return decoded_size(path)
            file.seek(0, 2)
            length = file.tell()
            file.seek(max(0, length - TAIL))
            if mark not in file.read():
                raise InputError(f"{path}: cut off after {length} bytes")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    if min(size) < 1:
        raise InputError(f"{path}: a size of {size[0]}x{size[1]}")
    return size[0], size[1]


def _jpeg_size(file: BinaryIO) -> Size:
    """From the first frame header; other segments are skipped by their lengths."""
    file.seek(2)
    for _ in range(MOST_SEGMENTS):
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF:
            break
        marker, length = head[1], int.from_bytes(head[2:4], "big")
        if marker == 0xFF:  # a fill byte
            file.seek(-3, 1)
            continue
        if 0xC0 <= marker <= 0xCF and marker not in NO_SIZE_MARKERS:
            body = file.read(5)
            if len(body) == 5:
                height, width = struct.unpack(">HH", body[1:5])
                return width, height
            break
        if length < 2:
            break
        file.seek(length - 2, 1)
    raise InputError(f"{file.name}: a JPEG without a size, cut off or broken")


def decoded_size(path: Path) -> Size:
    """Width and height of an image that was decoded."""
    import cv2

    try:
        data = np.fromfile(path, np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except (OSError, cv2.error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    if image is None:
        raise InputError(f"{path}: no image that can be decoded")
    return image.shape[1], image.shape[0]


def check_dataset(
    dataset: Dataset, *, decode: bool = False, on_sequence: Callable[[SequenceCheck], object] = lambda _one: None
) -> DatasetCheck:
    """Look through every sequence.

    Args:
        dataset: what was found.
        decode: decode every image instead of reading headers.
        on_sequence: called with every sequence as it is done.
    """
    measure = decoded_size if decode else image_size
    checks = []
    frameless = all(sequence.visible is None for sequence in dataset.sequences)
    with ThreadPoolExecutor(READERS) as readers:
        for sequence in dataset.sequences:
            checks.append(_check_sequence(sequence, measure, readers, frameless=frameless))
            on_sequence(checks[-1])
    alone = ("no frames anywhere: the ground truths alone, enough for scoring",) if frameless else ()
    return DatasetCheck(dataset.layout.name, dataset.root, tuple(checks), (*dataset.remarks, *alone))


def _check_sequence(
    sequence: SequenceFiles, measure: Callable[[Path], Size], readers: ThreadPoolExecutor, *, frameless: bool
) -> SequenceCheck:
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
        sizes[number] = _measure_all(images, measure, readers, find)
    counts = [len(images) for images in listed]
    odd = mispaired(*listed)
    if counts[0] != counts[1]:
        find("unpaired", f"{counts[0]} visible and {counts[1]} infrared frames")
    elif odd:
        find("unpaired", odd)
    rows, empty = _check_truths(sequence, counts[0], sizes[0], find)
    return SequenceCheck(sequence.name, min(counts), sizes[0], sizes[1], rows, empty, tuple(findings))


def _measure_all(
    images: list[Path],
    measure: Callable[[Path], Size],
    readers: ThreadPoolExecutor,
    find: Callable[[FindingKind, str], None],
) -> Size | None:
    """The size that most images have; the others, and those that cannot be read, are found."""

    def attempt(path: Path) -> Size | str:
        try:
            return measure(path)
        except InputError as error:
            return str(error)

    measured = list(zip(images, readers.map(attempt, images), strict=True))
    for _, reason in measured:
        if isinstance(reason, str):
            find("unreadable", reason)
    known = Counter(size for _, size in measured if not isinstance(size, str))
    if not known:
        return None
    usual = known.most_common(1)[0][0]
    odd = [(path, size) for path, size in measured if not isinstance(size, str) and size != usual]
    if odd:
        named = ", ".join(f"{path.name} {size[0]}x{size[1]}" for path, size in odd[:SHOWN])
        more = f" and {len(odd) - SHOWN} more" if len(odd) > SHOWN else ""
        find(
            "mis-sized", f"{images[0].parent}: {len(odd)} of {len(images)} are not {usual[0]}x{usual[1]}: {named}{more}"
        )
    return usual


def _check_truths(
    sequence: SequenceFiles, frames: int, size: Size | None, find: Callable[[FindingKind, str], None]
) -> tuple[int, int]:
    """Rows and rows without area of the first truth; every truth is read."""
    first: tuple[int, int] | None = None
    for kind in sequence.truths:
        try:
            boxes = sequence.boxes(kind)
        except InputError as error:
            find("truth", str(error))
            continue
        file = sequence.truths[kind].path.name
        wanted = -(-frames // sequence.step)
        if frames and len(boxes) != wanted:
            of = f"every {sequence.step}th of {frames} frames" if sequence.step > 1 else f"{frames} frames"
            find("truth", f"{file}: {len(boxes)} boxes for {of}")
        with np.errstate(invalid="ignore"):
            visible = np.isfinite(boxes).all(axis=1) & (boxes[:, 2] > 0) & (boxes[:, 3] > 0)
            if size is not None:
                right, bottom = boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]
                shown = (right > 0) & (bottom > 0) & (boxes[:, 0] < size[0]) & (boxes[:, 1] < size[1])
                outside = np.flatnonzero(visible & ~shown)
                if len(outside):
                    find(
                        "truth",
                        f"{file}: {len(outside)} boxes show nothing of the frame, first in line {outside[0] + 1}",
                    )
        if not visible[0]:
            find("truth", f"{file}: the first box has no area")
        if first is None:
            first = (len(boxes), int((~visible).sum()))
    return first or (0, 0)
