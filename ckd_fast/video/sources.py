"""Frame pairs from folders, video files, one side-by-side video, or live cameras. All frames are RGB.

A source is iterated once. A frame that cannot be read comes as None, with the reason in `Pair.problem`: what to do
about it is the caller's choice.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cv2
from numpy.typing import NDArray

from ckd_fast.errors import InputError, some_names
from ckd_fast.files import list_images, natural_key
from ckd_fast.images import read_rgb, read_tir

if TYPE_CHECKING:
    from typing_extensions import Self

Image = NDArray[Any]
PairBy = Literal["order", "stem"]
Layout = Literal["rgb-left", "tir-left", "rgb-top", "tir-top"]

QUEUE_FRAMES = 4  # per camera: a slow tracker drops old frames instead of falling behind
CAMERA_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Pair:
    """One moment.

    Attributes:
        index: from 0.
        name: of the frame, for messages and results.
        rgb: [H, W, 3] uint8, None where it could not be read.
        tir: uint8 or uint16, one or three channels, None where it could not be read.
        problem: what could not be read and why; empty if nothing.
        visible_index: of the visible frame in its folder or file, where images were left out; None: `index`.
    """

    index: int
    name: str
    rgb: Image | None
    tir: Image | None
    problem: str = ""
    visible_index: int | None = None


class PairSource(ABC):
    """Pairs in time order.

    Attributes:
        length: number of pairs, None where unknown (cameras).
        fps: frames per second of the recording, None where unknown.
        visible_length: visible frames there are, paired or not; None where unknown.
        remarks: what a user should know about how the two sides were paired.
        stopped: asked by live sources while they wait; set by who iterates.
    """

    stopped: Callable[[], bool] = staticmethod(lambda: False)
    length: int | None = None
    fps: float | None = None
    visible_length: int | None = None
    remarks: tuple[str, ...] = ()

    @abstractmethod
    def __iter__(self) -> Iterator[Pair]:
        """All pairs, once."""

    def close(self) -> None:  # noqa: B027
        """Let files and cameras go."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class FolderPairs(PairSource):
    """Two folders of images, paired by sorted order or by file stem."""

    def __init__(self, rgb: Path, tir: Path, by: PairBy = "order") -> None:
        visible, thermal = list_images(rgb), list_images(tir)
        self.visible_length = len(visible)
        self._places = {path: index for index, path in enumerate(visible)}
        remarks = []
        if by == "stem":
            stems = [{path.stem: path for path in paths} for paths in (visible, thermal)]
            for folder, paths, unique in ((rgb, visible, stems[0]), (tir, thermal, stems[1])):
                if len(unique) < len(paths):
                    left = sorted(path.name for path in paths if unique[path.stem] != path)
                    remarks.append(
                        f"{folder}: {len(left)} images share their stem with another: {some_names(left)} left out"
                    )
            for folder, mine, others in ((rgb, stems[0], stems[1]), (tir, stems[1], stems[0])):
                alone = sorted(set(mine) - set(others), key=natural_key)
                if alone:
                    remarks.append(f"{folder}: {len(alone)} images without a partner are left out: {some_names(alone)}")
            both = sorted(set(stems[0]) & set(stems[1]), key=natural_key)
            if not both:
                raise InputError(f"{rgb} and {tir} have no file stem in common; pair them by order")
            visible, thermal = [stems[0][stem] for stem in both], [stems[1][stem] for stem in both]
        else:
            if len(visible) != len(thermal):
                count = min(len(visible), len(thermal))
                remarks.append(
                    f"{rgb} has {len(visible)} images and {tir} has {len(thermal)}: paired by order, "
                    f"the last {abs(len(visible) - len(thermal))} are left out (or pair by stem)"
                )
                visible, thermal = visible[:count], thermal[:count]
            different = sum(a.stem != b.stem for a, b in zip(visible, thermal, strict=True))
            if different:
                first = next((a, b) for a, b in zip(visible, thermal, strict=True) if a.stem != b.stem)
                remarks.append(
                    f"{different} of {len(visible)} pairs have different stems, first {first[0].name} with "
                    f"{first[1].name}: paired by order (or pair by stem)"
                )
        self._pairs = list(zip(visible, thermal, strict=True))
        self.length = len(self._pairs)
        self.remarks = tuple(remarks)

    def __iter__(self) -> Iterator[Pair]:
        """Read image by image."""
        for index, (visible, thermal) in enumerate(self._pairs):
            rgb, tir = read_rgb(visible), read_tir(thermal)
            unread = [str(path) for path, image in ((visible, rgb), (thermal, tir)) if image is None]
            problem = f"{' and '.join(unread)} cannot be read" if unread else ""
            yield Pair(index, visible.stem, rgb, tir, problem, self._places[visible])


def _open_video(path: Path) -> cv2.VideoCapture:
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise InputError(f"{path}: not a video that can be opened")
    return capture


def _count(capture: cv2.VideoCapture) -> int | None:
    frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    return frames if frames > 0 else None


def _rate(capture: cv2.VideoCapture) -> float | None:
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if 0 < rate < 1000 else None


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
        """Decode frame by frame until one of the files ends."""
        index = 0
        while True:
            frames = [capture.read() for capture in self._captures]
            if not all(ok for ok, _ in frames):
                # The end, or damage; the files cannot tell us which, their announced length can.
                if self.length is not None and index < self.length:
                    names = [str(name) for name, (ok, _) in zip(self._names, frames, strict=True) if not ok]
                    rgb, tir = (_to_rgb(image) if ok else None for ok, image in frames)
                    yield Pair(index, f"{index:06d}", rgb, tir, f"{' and '.join(names)}: frame {index} cannot be read")
                    index += 1
                    continue
                return
            yield Pair(index, f"{index:06d}", _to_rgb(frames[0][1]), _to_rgb(frames[1][1]))
            index += 1

    def close(self) -> None:
        """Close both files."""
        for capture in self._captures:
            capture.release()


def _to_rgb(image: Image) -> Image:
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


class SideBySideVideo(PairSource):
    """One video that shows both modalities in its halves."""

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
        """Decode and cut in halves."""
        index = 0
        while True:
            ok, image = self._capture.read()
            if not ok:
                if self.length is not None and index < self.length:
                    problem = f"{self._path}: frame {index} cannot be read"
                    yield Pair(index, f"{index:06d}", None, None, problem)
                    index += 1
                    continue
                return
            image = _to_rgb(image)
            axis = 1 if self._layout.endswith("left") else 0
            half = image.shape[axis] // 2
            first, second = (image[:, :half], image[:, -half:]) if axis else (image[:half], image[-half:])
            rgb, tir = (first, second) if self._layout.startswith("rgb") else (second, first)
            yield Pair(index, f"{index:06d}", rgb, tir)
            index += 1

    def close(self) -> None:
        """Close the file."""
        self._capture.release()


class _Camera:
    """Reads one live source in a thread of its own into a bounded queue; the oldest frame gives way."""

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
        self._capture.release()  # here and nowhere else: another thread must not close what this one reads

    def next(self, stopped: Callable[[], bool]) -> tuple[float, Image] | None:
        """The oldest waiting frame with its time; None when the source ended or the caller was told to stop."""
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
        """The time of the oldest waiting frame, if one waits."""
        with self._changed:
            return self._frames[0][0] if self._frames else None

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=2)


class LivePairs(PairSource):
    """Two live sources, paired by the time at which their frames arrived.

    Args:
        rgb, tir: camera numbers or stream addresses.
        tolerance_s: frames further apart are no pair; the older one is dropped.
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
        """Frames that gave way because the tracker was busy, and frames without a partner in time."""
        return self.unpaired + sum(camera.dropped for camera in self._cameras)

    def __iter__(self) -> Iterator[Pair]:
        """Pairs as they arrive, until one source ends or `stopped` says so."""
        index = 0
        while True:
            visible, thermal = (camera.next(self.stopped) for camera in self._cameras)
            while visible is not None and thermal is not None:
                older = 0 if visible[0] < thermal[0] else 1
                apart = abs(visible[0] - thermal[0])
                # The nearest of what has arrived: the older side may have a closer frame waiting already.
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
        """Stop both threads; each lets its camera go."""
        for camera in self._cameras:
            camera.close()


def is_live(source: str) -> bool:
    """A camera's number or a stream's address."""
    return source.isdecimal() or "://" in source


def open_source(
    rgb: str, tir: str | None, *, by: PairBy = "order", layout: Layout = "rgb-left", tolerance_s: float = 0.05
) -> PairSource:
    """Open what a user named.

    Args:
        rgb: a folder, a video file, a camera number or a stream address.
        tir: the same for thermal; None if `rgb` is one video with both side by side.
        by: how folders are paired.
        layout: where the modalities are in a side-by-side video.
        tolerance_s: how far apart in time live frames may be.
    """
    if tir is None:
        if is_live(rgb) or Path(rgb).is_dir():
            raise InputError(f"{rgb}: the thermal side is missing (only a side-by-side video file stands alone)")
        return SideBySideVideo(_existing(rgb), layout)
    if is_live(rgb) != is_live(tir):
        raise InputError(f"{rgb} and {tir}: one is live and the other recorded; expected two of a kind")
    if is_live(rgb):
        return LivePairs(rgb, tir, tolerance_s)
    visible, thermal = _existing(rgb), _existing(tir)
    if visible.is_dir() != thermal.is_dir():
        raise InputError(f"{rgb} and {tir}: one is a folder and the other a file; expected two of a kind")
    return FolderPairs(visible, thermal, by) if visible.is_dir() else VideoPairs(visible, thermal)


def _existing(name: str) -> Path:
    path = Path(name)
    try:
        there = bool(name) and path.exists()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not there:
        raise InputError(f"{name or 'an empty name'}: no such file or folder")
    return path
