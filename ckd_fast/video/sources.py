"""Frame pairs from folders, video files, one side-by-side video, or live cameras.

Iterate a source once. Visible frames are in RGB order. A frame that cannot be read is None, with the reason in
`Pair.problem`; the caller decides what to do about it.
"""

from __future__ import annotations

import itertools
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cv2

from ckd_fast.errors import InputError, some_names
from ckd_fast.files import list_images, natural_key, reading
from ckd_fast.images import Image, read_rgb, read_tir

if TYPE_CHECKING:
    from typing_extensions import Self

PairBy = Literal["order", "stem"]
Layout = Literal["rgb-left", "tir-left", "rgb-top", "tir-top"]

QUEUE_FRAMES = 4  # per camera; a slow tracker drops old frames instead of falling behind
CAMERA_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Pair:
    """A visible and a thermal frame of the same moment."""

    index: int  # number of the pair, from 0
    name: str  # for messages and results
    rgb: Image | None  # [H, W, 3] uint8; None if it could not be read
    tir: Image | None  # uint8 or uint16, one or three channels; None if it could not be read
    problem: str = ""  # what could not be read; empty if nothing
    # number of the visible frame in its folder, which differs from `index` where images without a partner were left
    # out; None: the same as `index`
    visible_index: int | None = None


class PairSource(ABC):
    """Pairs in time order.

    Attributes:
        length: number of pairs; None if unknown (cameras).
        fps: frames per second of the recording; None if unknown.
        visible_length: number of visible frames, with or without a partner; None if unknown.
        remarks: what the user should know about the pairing.
        stopped: set by the caller; live sources ask it while they wait, and end if it returns True.
    """

    stopped: Callable[[], bool] = staticmethod(lambda: False)
    length: int | None = None
    fps: float | None = None
    visible_length: int | None = None
    remarks: tuple[str, ...] = ()

    @abstractmethod
    def __iter__(self) -> Iterator[Pair]:
        """Yield all pairs. Can be iterated once."""

    def close(self) -> None:  # noqa: B027
        """Release files and cameras."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class FolderPairs(PairSource):
    """Two folders of images, paired by sorted order or by file stem."""

    def __init__(self, rgb: Path, tir: Path, by: PairBy = "order") -> None:
        visible, thermal = list_images(rgb), list_images(tir)
        self.visible_length = len(visible)
        self._rows = {path: index for index, path in enumerate(visible)}
        pair = _pair_by_stem if by == "stem" else _pair_by_order
        self._pairs, self.remarks = pair(rgb, tir, visible, thermal)
        self.length = len(self._pairs)

    def __iter__(self) -> Iterator[Pair]:
        for index, (visible, thermal) in enumerate(self._pairs):
            rgb, tir = read_rgb(visible), read_tir(thermal)
            unread = [str(path) for path, image in ((visible, rgb), (thermal, tir)) if image is None]
            problem = f"{' and '.join(unread)} cannot be read" if unread else ""
            yield Pair(index, visible.stem, rgb, tir, problem, self._rows[visible])


PathPairs = list[tuple[Path, Path]]


def _pair_by_order(rgb: Path, tir: Path, visible: list[Path], thermal: list[Path]) -> tuple[PathPairs, tuple[str, ...]]:
    """Pair the n-th images; remarks on what does not match."""
    remarks = []
    pairs = list(zip(visible, thermal, strict=False))
    if len(visible) != len(thermal):
        remarks.append(
            f"{rgb} has {len(visible)} images and {tir} has {len(thermal)}: paired by order, "
            f"the last {abs(len(visible) - len(thermal))} are left out (or pair by stem)"
        )
    different = [(a.name, b.name) for a, b in pairs if a.stem != b.stem]
    if different:
        remarks.append(
            f"{len(different)} of {len(pairs)} pairs have different stems, first {different[0][0]} with "
            f"{different[0][1]}: paired by order (or pair by stem)"
        )
    return pairs, tuple(remarks)


def _pair_by_stem(rgb: Path, tir: Path, visible: list[Path], thermal: list[Path]) -> tuple[PathPairs, tuple[str, ...]]:
    """Pair images with the same file stem; remarks on what is left out."""
    remarks = []
    stems = [{path.stem: path for path in paths} for paths in (visible, thermal)]
    for folder, paths, by_stem in ((rgb, visible, stems[0]), (tir, thermal, stems[1])):
        twice = sorted(path.name for path in paths if by_stem[path.stem] != path)
        if twice:
            remarks.append(f"{folder}: {len(twice)} images share their stem with another: {some_names(twice)} left out")
    for folder, mine, others in ((rgb, stems[0], stems[1]), (tir, stems[1], stems[0])):
        alone = sorted(mine.keys() - others.keys(), key=natural_key)
        if alone:
            remarks.append(f"{folder}: {len(alone)} images without a partner are left out: {some_names(alone)}")
    both = sorted(stems[0].keys() & stems[1].keys(), key=natural_key)
    if not both:
        raise InputError(f"{rgb} and {tir} have no file stem in common; pair them by order")
    return [(stems[0][stem], stems[1][stem]) for stem in both], tuple(remarks)


def _open_video(path: Path) -> cv2.VideoCapture:
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise InputError(f"{path}: not a video, or it cannot be opened")
    return capture


def _count(capture: cv2.VideoCapture) -> int | None:
    frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    return frames if frames > 0 else None


def _rate(capture: cv2.VideoCapture) -> float | None:
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if 0 < rate < 1000 else None


def _decoded(captures: Sequence[cv2.VideoCapture], length: int | None) -> Iterator[list[Image | None]]:
    """Decode frame by frame, in RGB order, until one of the files ends; None for a frame that is damaged."""
    for index in itertools.count():
        frames = [capture.read() for capture in captures]
        if not all(ok for ok, _ in frames) and (length is None or index >= length):
            return  # before the announced length, a frame that cannot be read is damage
        yield [_to_rgb(image) if ok else None for ok, image in frames]


class VideoPairs(PairSource):
    """Two video files, paired frame by frame."""

    def __init__(self, rgb: Path, tir: Path) -> None:
        self._names = rgb, tir
        self._captures = _open_video(rgb), _open_video(tir)
        counts, rates = [_count(c) for c in self._captures], [_rate(c) for c in self._captures]
        known = [count for count in counts if count is not None]
        self.length = min(known) if known else None
        self.visible_length = counts[0]
        self.fps = rates[0]
        remarks = []
        if None not in counts and counts[0] != counts[1]:
            remarks.append(f"{rgb} has {counts[0]} frames and {tir} has {counts[1]}: the longer one's end is left out")
        if None not in rates and abs((rates[0] or 0) - (rates[1] or 0)) > 0.01:
            remarks.append(f"{rgb} has {rates[0]:g} frames/s and {tir} has {rates[1]:g}: paired frame by frame")
        self.remarks = tuple(remarks)

    def __iter__(self) -> Iterator[Pair]:
        for index, images in enumerate(_decoded(self._captures, self.length)):
            unread = [str(name) for name, image in zip(self._names, images, strict=True) if image is None]
            problem = f"{' and '.join(unread)}: frame {index} cannot be read" if unread else ""
            yield Pair(index, f"{index:06d}", images[0], images[1], problem)

    def close(self) -> None:
        for capture in self._captures:
            capture.release()


def _to_rgb(image: Image) -> Image:
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


class SideBySideVideo(PairSource):
    """One video with a modality in each half."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path = path
        self._capture = _open_video(path)
        self._layout = layout
        self.length, self.fps = _count(self._capture), _rate(self._capture)
        self.visible_length = self.length
        across = layout.endswith("left")
        size = self._capture.get(cv2.CAP_PROP_FRAME_WIDTH if across else cv2.CAP_PROP_FRAME_HEIGHT)
        if int(size) % 2:
            self.remarks = (f"{path} is {int(size)} pixels {'wide' if across else 'high'}: the middle one is left out",)

    def __iter__(self) -> Iterator[Pair]:
        axis = 1 if self._layout.endswith("left") else 0
        for index, (image,) in enumerate(_decoded([self._capture], self.length)):
            name = f"{index:06d}"
            if image is None:
                yield Pair(index, name, None, None, f"{self._path}: frame {index} cannot be read")
                continue
            half = image.shape[axis] // 2
            first, second = (image[:, :half], image[:, -half:]) if axis else (image[:half], image[-half:])
            yield Pair(index, name, *((first, second) if self._layout.startswith("rgb") else (second, first)))

    def close(self) -> None:
        self._capture.release()


class _Camera:
    """Reads a live source in its own thread into a short queue, from which the oldest frame is dropped when full."""

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            self._capture = cv2.VideoCapture(int(name) if name.isdecimal() else name)
            opened = self._capture.isOpened()
        except (cv2.error, OverflowError, ValueError):
            opened = False
        if not opened:
            raise InputError(f"{name}: no such camera or stream, or it does not answer")
        self.dropped = 0
        self._frames: deque[tuple[float, Image]] = deque()
        self._ended = False
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"camera {name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            ok, image = self._capture.read()
            with self._changed:
                if ok:
                    if len(self._frames) == QUEUE_FRAMES:
                        self._frames.popleft()
                        self.dropped += 1
                    self._frames.append((time.monotonic(), image))
                else:
                    self._ended = True
                self._changed.notify_all()
            if not ok:
                break
        self._capture.release()  # only here: another thread must not close it during a read

    def next(self, stopped: Callable[[], bool]) -> tuple[float, Image] | None:
        """Wait for the oldest queued frame and its time; None if the source ended or `stopped` returns True."""
        deadline = time.monotonic() + CAMERA_TIMEOUT_S
        with self._changed:
            while not self._frames:
                if self._ended or stopped():
                    return None
                if time.monotonic() > deadline:
                    raise InputError(f"{self.name}: no frame for {CAMERA_TIMEOUT_S:.0f} s")
                self._changed.wait(0.1)
            return self._frames.popleft()

    def peek(self) -> float | None:
        """The time of the oldest queued frame; None if the queue is empty."""
        with self._changed:
            return self._frames[0][0] if self._frames else None

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=2)


class LivePairs(PairSource):
    """Two live sources, paired by arrival time.

    Args:
        rgb, tir: camera numbers or stream addresses.
        tolerance_s: frames further apart are not paired; the older one is dropped.
    """

    def __init__(self, rgb: str, tir: str, tolerance_s: float = 0.05) -> None:
        if not 0 < tolerance_s < float("inf"):
            raise InputError(f"live tolerance {tolerance_s} s: expected a positive number")
        self._tolerance = tolerance_s
        visible = _Camera(rgb)
        try:
            thermal = _Camera(tir)
        except InputError:
            visible.close()
            raise
        self._cameras = visible, thermal
        self.unpaired = 0

    @property
    def dropped(self) -> int:
        """Frames that were dropped: the tracker was busy, or no partner arrived in time."""
        return self.unpaired + sum(camera.dropped for camera in self._cameras)

    def __iter__(self) -> Iterator[Pair]:
        """Yield pairs as they arrive, until one source ends or `stopped` returns True."""
        index = 0
        while True:
            visible, thermal = (camera.next(self.stopped) for camera in self._cameras)
            while visible is not None and thermal is not None:
                older = 0 if visible[0] < thermal[0] else 1
                apart = abs(visible[0] - thermal[0])
                # Pair with the nearest: a closer frame of the older side may be queued already.
                waiting = self._cameras[older].peek()
                newer = thermal[0] if older == 0 else visible[0]
                if apart <= self._tolerance and (waiting is None or abs(waiting - newer) >= apart):
                    break
                self.unpaired += 1
                following = self._cameras[older].next(self.stopped)
                visible, thermal = (following, thermal) if older == 0 else (visible, following)
            if visible is None or thermal is None:
                return
            yield Pair(index, f"{index:06d}", _to_rgb(visible[1]), _to_rgb(thermal[1]))
            index += 1

    def close(self) -> None:
        for camera in self._cameras:
            camera.close()


def is_live(source: str) -> bool:
    """Whether this is a camera number or a stream address."""
    return source.isdecimal() or "://" in source


def open_source(
    rgb: str, tir: str | None, *, by: PairBy = "order", layout: Layout = "rgb-left", tolerance_s: float = 0.05
) -> PairSource:
    """Open the source that the user named.

    Args:
        rgb: a folder, a video file, a camera number or a stream address.
        tir: the same for thermal; None if `rgb` is a side-by-side video.
        by: how to pair the images of folders.
        layout: of a side-by-side video.
        tolerance_s: largest time between the frames of a live pair.
    """
    if tir is None:
        if is_live(rgb) or Path(rgb).is_dir():
            raise InputError(f"{rgb}: the thermal source is missing (only a side-by-side video has both)")
        return SideBySideVideo(_existing(rgb), layout)
    if is_live(rgb) != is_live(tir):
        raise InputError(f"{rgb} and {tir}: one is live and the other is recorded; expected two of a kind")
    if is_live(rgb):
        return LivePairs(rgb, tir, tolerance_s)
    visible, thermal = _existing(rgb), _existing(tir)
    if visible.is_dir() != thermal.is_dir():
        raise InputError(f"{rgb} and {tir}: one is a folder and the other a file; expected two of a kind")
    return FolderPairs(visible, thermal, by) if visible.is_dir() else VideoPairs(visible, thermal)


def _existing(name: str) -> Path:
    path = Path(name)
    with reading(path):
        if not name or not path.exists():
            raise InputError(f"{name or 'an empty name'}: no such file or folder")
    return path
