"""FEAR-XS and NanoTrack, two small public RGB trackers: what our packaged model is measured against and learns from.

    FEAR-XS    github PinataFarms/FEARTracker (MIT), exported to ONNX: fear_xs_template.onnx, fear_xs_search.onnx
    NanoTrack  github HonglinChu/SiamTrackers, NanoTrack/models (Apache-2.0): vN_backbone.onnx, vN_head.onnx

Their files are not part of the project; the programs here take the folder that holds `fear_xs/` and `nanotrack/`. Both
follow a target in one view. `Either` runs two of them on an RGB-thermal pair: the more confident one decides.
Images are RGB [H, W, 3] uint8. A box is x, y, w, h.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ckd_fast.types import Box

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
STRIDE = 16


@dataclass(frozen=True)
class Found:
    """A box, and how sure the tracker is, in [0, 1]."""

    box: Box
    score: float


class Network:
    """An ONNX file on one thread of the CPU; `any_size` lets its images have another size than the file says."""

    def __init__(self, path: Path, *, any_size: bool = False) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        model = _any_size(path) if any_size else path.read_bytes()
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._inputs = [value.name for value in self._session.get_inputs()]

    def __call__(self, *values: Floats) -> list[Floats]:
        found: list[Floats] = self._session.run(None, dict(zip(self._inputs, values, strict=True)))
        return found


def _any_size(path: Path) -> bytes:
    import onnx

    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        for axis in (2, 3):
            value.type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    del model.graph.value_info[:]
    serialised: bytes = model.SerializeToString()
    return serialised


class PublicTracker(ABC):
    """Follows one target in one view."""

    box: Box

    @abstractmethod
    def init(self, image: Image, box: Box) -> None:
        """Start on a target."""

    @abstractmethod
    def update(self, image: Image) -> Found:
        """Find it in the next frame."""


@dataclass(frozen=True)
class Penalty:
    """How a tracker's answers are chosen and smoothed: published constants of each."""

    change: float  # strength of the penalty on a change of size and shape
    window: float  # share of the Hann window in the choice
    rate: float  # of the size's change, times penalty and score
    smallest: float  # side of a box in pixels


def _either_way(ratio: Floats) -> Floats:
    return np.maximum(ratio, 1 / ratio)


def _context_side(w: Floats | float, h: Floats | float) -> Floats:
    pad = (w + h) / 2
    return np.sqrt((w + pad) * (h + pad))


@dataclass(frozen=True)
class Chosen:
    """The best cell's box, in crop pixels from the crop's centre, and what else it says."""

    centre: tuple[float, float]
    size: tuple[float, float]
    score: float
    rate: float  # by how much the box's size follows


def choose(corners: Floats, scores: Floats, size: tuple[float, float], penalty: Penalty) -> Chosen:
    """The best cell after penalty and window.

    Args:
        corners: x1, y1, x2, y2 of every cell's box, from the crop's centre [4, g, g].
        scores: of the cells [g, g].
        size: the target's last width and height, in crop pixels.
        penalty: of the tracker.
    """
    x1, y1, x2, y2 = corners
    w, h = x2 - x1, y2 - y1
    resized = _either_way(_context_side(w, h) / _context_side(*size))
    reshaped = _either_way((size[0] / size[1]) / (w / h))
    damped = np.exp(-(resized * reshaped - 1) * penalty.change)
    hann = np.outer(np.hanning(len(scores)), np.hanning(len(scores)))
    cell = np.unravel_index(np.argmax(damped * scores * (1 - penalty.window) + hann * penalty.window), scores.shape)
    return Chosen(
        centre=(float((x1 + x2)[cell] / 2), float((y1 + y2)[cell] / 2)),
        size=(float(w[cell]), float(h[cell])),
        score=float(scores[cell]),
        rate=float(damped[cell] * scores[cell] * penalty.rate),
    )


def _followed(box: Box, chosen: Chosen, scale: tuple[float, float], image: Image, smallest: float) -> Box:
    """The last box after a frame; `scale`: crop pixels per frame pixel on each axis."""
    centre, sides = [], []
    for axis, limit in ((0, image.shape[1]), (1, image.shape[0])):
        at = box[axis] + box[axis + 2] / 2 + chosen.centre[axis] / scale[axis]
        side = box[axis + 2] * (1 - chosen.rate) + chosen.size[axis] / scale[axis] * chosen.rate
        centre.append(min(max(at, 0.0), limit))
        sides.append(min(max(side, smallest), limit))
    return centre[0] - sides[0] / 2, centre[1] - sides[1] / 2, sides[0], sides[1]


def _cut(image: Image, centre: tuple[float, float], scale: tuple[float, float], side: int, fill: Floats) -> Image:
    """A square crop; `scale`: crop pixels per frame pixel on each axis."""
    (cx, cy), (kx, ky) = centre, scale
    matrix = np.array([[kx, 0, side / 2 - kx * cx], [0, ky, side / 2 - ky * cy]], np.float32)
    return cv2.warpAffine(image, matrix, (side, side), borderValue=[float(v) for v in fill])  # type: ignore[return-value]


class Fear(PublicTracker):
    """FEAR-XS. Crops are stretched: 1.4 boxes to 128 pixels, 5 boxes to 256 pixels on each axis; 16 x 16 cells."""

    MEAN = np.array([123.675, 116.28, 103.53], np.float32)
    PENALTY = Penalty(change=0.062, window=0.38, rate=0.765, smallest=6.0)

    def __init__(self, folder: Path) -> None:
        self._embed = Network(folder / "fear_xs" / "fear_xs_template.onnx")
        self._search = Network(folder / "fear_xs" / "fear_xs_search.onnx")
        ticks = (np.arange(16, dtype=np.float32) - 8) * STRIDE
        self._x, self._y = np.meshgrid(ticks, ticks)

    def _crop(self, image: Image, factor: float, side: int) -> Floats:
        x, y, w, h = self.box
        cropped = _cut(image, (x + w / 2, y + h / 2), (side / (w * factor), side / (h * factor)), side, self._fill)
        return np.ascontiguousarray((cropped - self.MEAN).transpose(2, 0, 1)[None])

    def init(self, image: Image, box: Box) -> None:
        self.box, self._fill = box, image.mean((0, 1))
        (self._template,) = self._embed(self._crop(image, 1.4, 128))

    def update(self, image: Image) -> Found:
        w, h = self.box[2:]
        kx, ky = 256 / (5 * w), 256 / (5 * h)
        boxes, logits = self._search(self._crop(image, 5.0, 256), self._template)
        (left, top, right, bottom), scores = boxes[0], 1 / (1 + np.exp(-logits[0, 0]))
        corners = np.stack([self._x - left, self._y - top, self._x + right, self._y + bottom])
        chosen = choose(corners, scores, (w * kx, h * ky), self.PENALTY)
        self.box = _followed(self.box, chosen, (kx, ky), image, self.PENALTY.smallest)
        return Found(self.box, chosen.score)


class Nano(PublicTracker):
    """NanoTrack. Square crops with context: 127 pixels for the template, 255 for the search; raw BGR levels."""

    PENALTIES = (Penalty(0.150, 0.490, 0.385, 8.0), Penalty(0.138, 0.455, 0.348, 8.0))  # of versions 2 and 3
    CELLS = (16, 15)

    def __init__(self, folder: Path, version: int = 3) -> None:
        self._backbone = Network(folder / "nanotrack" / f"v{version}_backbone.onnx", any_size=True)
        self._head = Network(folder / "nanotrack" / f"v{version}_head.onnx")
        self._penalty, cells = self.PENALTIES[version - 2], self.CELLS[version - 2]
        ticks = (np.arange(cells, dtype=np.float32) - cells // 2) * STRIDE
        self._x, self._y = np.meshgrid(ticks, ticks)

    def _crop(self, image: Image, scale: float, side: int) -> Floats:
        x, y, w, h = self.box
        cropped = _cut(image, (x + w / 2, y + h / 2), (scale, scale), side, self._fill)
        return np.ascontiguousarray(cropped[:, :, ::-1].transpose(2, 0, 1)[None].astype(np.float32))

    def init(self, image: Image, box: Box) -> None:
        self.box, self._fill = box, image.mean((0, 1))
        (self._template,) = self._backbone(self._crop(image, 127 / float(_context_side(*box[2:])), 127))

    def update(self, image: Image) -> Found:
        scale = 127 / float(_context_side(*self.box[2:]))
        (features,) = self._backbone(self._crop(image, scale, 255))
        classes, sides = self._head(self._template, features)
        against, target = classes[0]
        scores = 1 / (1 + np.exp(against - target))
        left, top, right, bottom = sides[0]
        corners = np.stack([self._x - left, self._y - top, self._x + right, self._y + bottom])
        chosen = choose(corners, scores, (self.box[2] * scale, self.box[3] * scale), self._penalty)
        self.box = _followed(self.box, chosen, (scale, scale), image, self._penalty.smallest)
        return Found(self.box, chosen.score)


class Either:
    """Two trackers on one target, one per modality; the more confident one decides, and both go on from its box."""

    def __init__(self, make: Callable[[], PublicTracker]) -> None:
        self._rgb, self._tir = make(), make()

    def init(self, rgb: Image, tir: Image, box: Box) -> None:
        """Start on a target."""
        self._rgb.init(rgb, box)
        self._tir.init(tir, box)

    def update(self, rgb: Image, tir: Image) -> Found:
        """Find it in the next frames."""
        visible, thermal = self._rgb.update(rgb), self._tir.update(tir)
        found = thermal if thermal.score > visible.score else visible
        self._rgb.box = self._tir.box = found.box
        return found
