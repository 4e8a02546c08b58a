"""Real samples: a template and a search view of one target, read from sequences or still pairs, jittered and cropped.

A sample depends on (seed, stage, position) alone, whichever process reads it. A sample that cannot be read is named and
replaced by another draw, a limited number of times.
"""

from __future__ import annotations

import dataclasses
import json
import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ckd_fast.datasets import SequenceFiles, open_dataset
from ckd_fast.errors import InputError, TrainingError
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.preprocess import box_in_crop, crop, crop_window
from ckd_fast.types import Box

from . import seeds
from .config import Sampling, Source, TrainConfig
from .counterparts import thermal_like, visible_like

MOST_ATTEMPTS = 20
REGION_DRAWS = 12
LEAST_TEXTURE = 4.0
_FOLDERS = ("visible", "infrared")


@dataclass(frozen=True)
class AnnotatedPair:
    """A visible and a thermal frame of one moment, [H, W, 3] uint8 of one size, and the target's box in both.

    One of the frames may be missing; its crops are then made from the other's, see `counterparts`.
    """

    rgb: NDArray[np.uint8] | None
    tir: NDArray[np.uint8] | None
    box: Box


@dataclass(frozen=True)
class PairSample:
    """One sample before augmentation: both crops, the target in units of the search crop.

    `bad` holds the draws before this one that could not be read: file and reason.
    """

    template: NDArray[np.uint8]  # rgb and tir [2, h, w, 3]
    search: NDArray[np.uint8]  # [2, H, W, 3]
    target_xywh: Box
    bad: tuple[str, ...] = ()


@dataclass(frozen=True)
class Crops:
    """B samples before augmentation."""

    template: Tensor  # rgb and tir [2, B, 3, h, w] uint8
    search: Tensor  # [2, B, 3, H, W] uint8
    target_xywh: Tensor  # in units of the search crop [B, 4]
    bad: tuple[str, ...] = ()


def collate(samples: Sequence[PairSample]) -> Crops:
    def stacked(images: list[NDArray[np.uint8]]) -> Tensor:
        return torch.from_numpy(np.stack(images)).permute(1, 0, 4, 2, 3).contiguous()  # [2, B, 3, H, W]

    return Crops(
        stacked([sample.template for sample in samples]),
        stacked([sample.search for sample in samples]),
        torch.tensor([sample.target_xywh for sample in samples], dtype=torch.float32),
        tuple(name for sample in samples for name in sample.bad),
    )


class FrameCache:
    """The most recently used decoded frames, up to a number of bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._held = most_bytes, 0
        self._frames: OrderedDict[Path, NDArray[np.uint8]] = OrderedDict()

    def read(self, path: Path) -> NDArray[np.uint8]:
        """A frame in RGB order [H, W, 3]."""
        if path in self._frames:
            self._frames.move_to_end(path)
            return self._frames[path]
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise InputError(f"{path}: {'cannot be decoded' if path.exists() else 'no such file'}")
        frame: NDArray[np.uint8] = cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
        self._frames[path] = frame
        self._held += frame.nbytes
        while self._held > self._most and self._frames:
            _, old = self._frames.popitem(last=False)
            self._held -= old.nbytes
        return frame

    def read_pair(self, visible: Path | None, infrared: Path | None, box: Box) -> AnnotatedPair:
        """Both modalities at the visible frame's size, or the one that there is; the box must overlap the frame."""
        rgb, tir = (None if path is None else self.read(path) for path in (visible, infrared))
        if rgb is not None and tir is not None and tir.shape != rgb.shape:
            tir = cv2.resize(tir, rgb.shape[1::-1]).astype(np.uint8, copy=False)
        height, width = _size(rgb, tir)
        x, y, w, h = box
        if not (w > 0 and h > 0 and x < width and y < height and x + w > 0 and y + h > 0):
            raise InputError(f"{visible or infrared}: box {box} lies outside the frame of {width}x{height}")
        return AnnotatedPair(rgb, tir, box)


def _size(rgb: NDArray[np.uint8] | None, tir: NDArray[np.uint8] | None) -> tuple[int, int]:
    """Height and width of the frames of a pair."""
    frame = rgb if rgb is not None else tir
    if frame is None:
        raise ValueError("a pair needs one frame at least")
    return frame.shape[0], frame.shape[1]


class SampleSource(ABC):
    """Draws template and search views."""

    @abstractmethod
    def draw(self, random: np.random.Generator) -> tuple[AnnotatedPair, AnnotatedPair]:
        """A template and a search view of one target; `InputError` if they cannot be read."""


class SequenceSource(SampleSource):
    """Two frames of one sequence of a data set, the search frame after the template."""

    def __init__(self, sequences: Sequence[SequenceFiles], sampling: Sampling, cache: FrameCache) -> None:
        if not sequences:
            raise InputError("no sequences are left of a data set: check its root, `sequences` and `exclude`")
        self._sequences, self._sampling, self._cache = tuple(sequences), sampling, cache
        self._opened: dict[int, tuple[tuple[Path, ...], tuple[Path, ...], NDArray[np.float64]]] = {}

    def draw(self, random: np.random.Generator) -> tuple[AnnotatedPair, AnnotatedPair]:
        index = int(random.integers(len(self._sequences)))
        sequence = self._sequences[index]
        if index not in self._opened:
            frames = sequence.frames()
            self._opened[index] = (frames.visible, frames.infrared, sequence.boxes())
        visible, infrared, boxes = self._opened[index]
        rows = min(len(boxes), (len(visible) - 1) // sequence.step + 1)
        usable = np.flatnonzero(np.isfinite(boxes[:rows]).all(1) & (boxes[:rows, 2] > 0) & (boxes[:rows, 3] > 0))
        if len(usable) < 2:
            raise InputError(f"{sequence.name}: fewer than two frames with a box")
        first = int(random.choice(usable[:-1]))
        gap = math.ceil(self._sampling.longest_gap / sequence.step)
        later = usable[(usable > first) & (usable < first + gap)]
        while len(later) == 0:
            gap += self._sampling.widen_by
            later = usable[(usable > first) & (usable < first + gap)]
        second = int(random.choice(later))
        views = []
        for row in (first, second):
            frame = sequence.frame_of_row(row)
            x, y, w, h = (float(value) for value in boxes[row])
            views.append(self._cache.read_pair(visible[frame], infrared[frame], (x, y, w, h)))
        return views[0], views[1]


class StillSource(SampleSource):
    """Single pairs of images with boxes: both views show the same pair, and differ by jitter and augmentation.

    The folder has `visible/NAME` or `infrared/NAME` or both, and `boxes.json`: {"NAME without suffix": {"boxes":
    [[x, y, w, h, label], ...]}}. Boxes with a side under `smallest` pixels are left out: they show too little.
    """

    smallest = 12.0

    def __init__(self, root: Path, cache: FrameCache) -> None:
        self._cache = cache
        try:
            listed = json.loads((root / "boxes.json").read_text(encoding="utf-8"))
            self._targets = [
                (name, tuple(float(value) for value in box[:4]))
                for name, entry in sorted(listed.items())
                for box in entry["boxes"]
                if min(float(box[2]), float(box[3])) >= self.smallest
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise InputError(
                f"{root / 'boxes.json'}: expected {{name: {{boxes: [[x, y, w, h], ...]}}}} ({error!r})"
            ) from None
        if not self._targets:
            raise InputError(f"{root / 'boxes.json'}: no boxes of at least {self.smallest:g} pixels")
        self._files = {
            folder: {path.stem: path for path in (root / folder).iterdir()}
            for folder in _FOLDERS
            if (root / folder).is_dir()
        }
        if not self._files:
            raise InputError(f"{root}: holds neither visible/ nor infrared/")

    def draw(self, random: np.random.Generator) -> tuple[AnnotatedPair, AnnotatedPair]:
        name, box = self._targets[int(random.integers(len(self._targets)))]
        for folder, files in self._files.items():
            if name not in files:
                raise InputError(f"{folder}/{name}: no such image")
        x, y, w, h = box
        visible, infrared = (self._files[folder][name] if folder in self._files else None for folder in _FOLDERS)
        view = self._cache.read_pair(visible, infrared, (x, y, w, h))
        return view, view


@dataclass(frozen=True)
class Recording:
    """Frames of one recording, and where its targets are."""

    visible: tuple[Path, ...]  # empty where there was no such camera
    infrared: tuple[Path, ...]
    tracklets: tuple[tuple[int, NDArray[np.float64]], ...]  # number of the first frame, boxes [n, 4]

    def at(self, frame: int) -> tuple[Path | None, Path | None]:
        """The files of a moment."""
        return (self.visible[frame] if self.visible else None, self.infrared[frame] if self.infrared else None)

    @property
    def frames(self) -> int:
        """Number of moments."""
        return max(len(self.visible), len(self.infrared))


def read_recording(folder: Path) -> Recording:
    """`visible/` or `infrared/` or both, and `tracklets.json`: [[first frame, [[x, y, w, h], ...]], ...]."""
    visible, infrared = (tuple(sorted((folder / name).glob("*.jpg"))) for name in _FOLDERS)
    if (not visible and not infrared) or (visible and infrared and len(visible) != len(infrared)):
        raise InputError(
            f"{folder}: {len(visible)} visible and {len(infrared)} infrared frames; expected as many of both, or of one"
        )
    path = folder / "tracklets.json"
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        tracklets = tuple((int(first), np.array(boxes, np.float64).reshape(-1, 4)) for first, boxes in listed)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: expected [[first frame, [[x, y, w, h], ...]], ...] ({error!r})") from None
    recording = Recording(visible, infrared, tracklets)
    for first, boxes in tracklets:
        if first < 0 or len(boxes) < 2 or first + len(boxes) > recording.frames or not np.isfinite(boxes).all():
            raise InputError(f"{path}: a tracklet of {len(boxes)} boxes from frame {first} does not fit the frames")
    return recording


class FootageSource(SampleSource):
    """Two frames of one tracklet, in either order; or, in a share of the draws, any region with texture, in one frame.

    `experiments/footage.py` makes such recordings.
    """

    def __init__(self, recordings: Sequence[Recording], regions: float, sampling: Sampling, cache: FrameCache) -> None:
        if not recordings:
            raise InputError("no recordings are left of a source of footage: check its root, `sequences` and `exclude`")
        self._regions, self._sampling, self._cache = regions, sampling, cache
        self._recordings = tuple(recordings)
        self._tracklets = [(recording, *tracklet) for recording in recordings for tracklet in recording.tracklets]
        if not self._tracklets and regions < 1:
            raise InputError("a source of footage has no tracklets: set regions=1 to draw regions alone")

    def draw(self, random: np.random.Generator) -> tuple[AnnotatedPair, AnnotatedPair]:
        if random.random() < self._regions:
            return self._region(random)
        recording, first, boxes = self._tracklets[int(random.integers(len(self._tracklets)))]
        one = int(random.integers(len(boxes)))
        reach = self._sampling.longest_gap - 1
        other = int(random.integers(max(0, one - reach), min(len(boxes), one + reach + 1)))
        views = []
        for row in (one, other):
            x, y, w, h = (float(value) for value in boxes[row])
            views.append(self._cache.read_pair(*recording.at(first + row), (x, y, w, h)))
        return views[0], views[1]

    def _region(self, random: np.random.Generator) -> tuple[AnnotatedPair, AnnotatedPair]:
        recording = self._recordings[int(random.integers(len(self._recordings)))]
        paths = recording.at(int(random.integers(recording.frames)))
        frame = self._cache.read(next(path for path in paths if path is not None))
        box = textured_region(frame, random)
        if box is None:
            raise NothingThereError(f"{paths}: no region with texture")
        view = self._cache.read_pair(*paths, box)
        return view, view


class NothingThereError(InputError):
    """An unlucky draw from a good file."""


def textured_region(image: NDArray[np.uint8], random: np.random.Generator) -> Box | None:
    """A rectangle of an image [H, W, 3] that has texture; None if a few draws found none."""
    height, width = image.shape[:2]
    for _ in range(REGION_DRAWS):
        side, shape = math.exp(random.uniform(math.log(14), math.log(130))), math.exp(random.normal(0, 0.4))
        w, h = side * math.sqrt(shape), side / math.sqrt(shape)
        x, y = random.uniform(0, max(width - w, 1)), random.uniform(0, max(height - h, 1))
        inside = image[int(y) : int(y + h), int(x) : int(x + w)]
        if inside.size and _edges(inside) > LEAST_TEXTURE:
            return x, y, w, h
    return None


def _edges(image: NDArray[np.uint8]) -> float:
    """Standard deviation of the second derivative, in levels."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(cv2.Laplacian(cv2.GaussianBlur(gray, (0, 0), 1.0), cv2.CV_32F).std())


def open_source(source: Source, sampling: Sampling, cache: FrameCache) -> SampleSource:
    """A reader of a source of real samples."""
    if source.kind == "stills":
        return StillSource(Path(source.root), cache)
    if source.kind == "footage":
        return _open_footage(source, sampling, cache)
    dataset = open_dataset(source.name, source.root or None)
    if source.sequences:
        dataset = dataset.select(source.sequences)
    for name in source.exclude:
        dataset.sequence(name)  # raises if there is no such sequence
    return SequenceSource([s for s in dataset.sequences if s.name not in source.exclude], sampling, cache)


def _open_footage(source: Source, sampling: Sampling, cache: FrameCache) -> FootageSource:
    root = Path(source.root)
    folders = {path.parent.name: path.parent for path in sorted(root.glob("*/tracklets.json"))}
    for name in (*source.sequences, *source.exclude):
        if name not in folders:
            raise InputError(f"{root}: no recording {name!r}; there are {', '.join(folders) or 'none'}")
    used = [name for name in source.sequences or folders if name not in source.exclude]
    return FootageSource([read_recording(folders[name]) for name in used], source.regions, sampling, cache)


def jittered(box: Box, sampling: Sampling, random: np.random.Generator) -> Box:
    """Where the tracker might believe the target to be when it searches around it."""
    w, h = (size * math.exp(sampling.scale_jitter * random.normal()) for size in box[2:])
    reach = math.sqrt(w * h) * sampling.centre_jitter
    cx, cy = (box[i] + box[i + 2] / 2 + reach * (random.random() - 0.5) for i in range(2))
    return cx - w / 2, cy - h / 2, w, h


def cut(
    template: AnnotatedPair, search: AnnotatedPair, model: ModelConfig, sampling: Sampling, random: np.random.Generator
) -> PairSample:
    """Crops of both views; `InputError` if the search crop would miss the frame altogether."""
    around = jittered(search.box, sampling, random)
    window = crop_window(around, model.search_factor)
    height, width = _size(search.rgb, search.tir)
    if window.left >= width or window.top >= height or window.left + window.side <= 0 or window.top + window.side <= 0:
        raise InputError("the jittered search crop misses the frame")
    crops: list[list[NDArray[np.uint8]] | None] = []
    for frames in ((template.rgb, search.rgb), (template.tir, search.tir)):
        if frames[0] is None or frames[1] is None:
            crops.append(None)
            continue
        small = crop(frames[0], template.box, model.template_factor, model.template_size)
        crops.append([small.image, crop(frames[1], around, model.search_factor, model.search_size).image])
    rgb, tir = crops
    rgb = visible_like(tir or [], random) if rgb is None else rgb
    tir = thermal_like(rgb, random) if tir is None else tir
    return PairSample(
        template=np.stack([rgb[0], tir[0]]),
        search=np.stack([rgb[1], tir[1]]),
        target_xywh=box_in_crop(search.box, around, model.search_size / window.side, model.search_size),
    )


class PairDataset:
    """Samples by position, for `torch.utils.data`; every stage has its own."""

    def __init__(self, config: TrainConfig, stage: int) -> None:
        self._config, self._stage = config, stage
        cache = FrameCache(config.upkeep.cache_mb << 20)
        real = [source for source in config.sources if source.kind != "synthetic"]
        self._sources = [open_source(source, config.sampling, cache) for source in real]
        shares = np.array([source.share for source in real])
        self._shares = shares / shares.sum()

    def __getitem__(self, position: int) -> PairSample:
        bad: list[str] = []
        for attempt in range(MOST_ATTEMPTS):
            random = np.random.default_rng([self._config.seed, seeds.SAMPLES, self._stage, position, attempt])
            source = self._sources[int(random.choice(len(self._sources), p=self._shares))]
            try:
                template, search = source.draw(random)
            except NothingThereError:
                continue
            except InputError as error:
                bad.append(str(error))
                continue
            try:
                sample = cut(template, search, self._config.model, self._config.sampling, random)
            except InputError:
                continue  # unlucky jitter, not a bad file; the published sampling draws again, too
            return dataclasses.replace(sample, bad=tuple(bad))
        raise TrainingError(
            f"no sample in {MOST_ATTEMPTS} draws in a row; the last reasons: {'; '.join(bad[-3:]) or 'empty crops'}. "
            "Check the data with `ckd-fast data check`"
        )
