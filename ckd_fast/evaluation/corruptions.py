"""Damage to frames for robustness tests. It depends only on the seed, the sequence and the frame number.

The first frame is damaged too, but never dropped or late. In 16-bit frames, one level is a 255th of the frame's range.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ckd_fast.errors import InputError

Image = NDArray[Any]

STRENGTHS: Mapping[str, tuple[float, ...]] = {  # at levels 1 to 5
    "blur": (1, 2, 3, 5, 8),  # both modalities: Gaussian, sigma in pixels
    "noise": (8, 16, 32, 48, 64),  # both: Gaussian, deviation in levels
    "darkness": (0.5, 0.3, 0.15, 0.07, 0.03),  # visible: factor, plus sensor noise
    "stripes": (4, 8, 16, 32, 48),  # thermal: columns with fixed offsets, deviation in levels
    "dropped": (0.1, 0.2, 0.4, 0.6, 0.8),  # share of frames in which one modality, either, is missing
    "shift": (4, 8, 16, 24, 32),  # thermal: pixels, in one direction per sequence
    "stutter": (0.1, 0.2, 0.3, 0.5, 0.7),  # share of late frames: the frame before arrives again
}
CORRUPTIONS: tuple[str, ...] = tuple(STRENGTHS)
LEVELS = 5
SENSOR_NOISE = 3.0  # levels, of a visible camera in the dark
# Purposes of random numbers: part of the seed, so that draws for one purpose do not depend on another.
FOR_SEQUENCE, FOR_FRAME, FOR_DELIVERY = range(3)


@dataclass(frozen=True)
class Corruption:
    name: str  # one of `CORRUPTIONS`
    level: int  # 1 to 5
    seed: int = 0  # equal seeds give equal damage

    def __post_init__(self) -> None:
        if self.name not in CORRUPTIONS:
            raise InputError(f"corruption {self.name!r}: known are {', '.join(CORRUPTIONS)}")
        if not 1 <= self.level <= LEVELS:
            raise InputError(f"corruption {self.name}:{self.level}: expected a level from 1 to {LEVELS}")

    @property
    def strength(self) -> float:
        """The level's value in `STRENGTHS`."""
        return STRENGTHS[self.name][self.level - 1]

    def _random(self, sequence: str, purpose: int, frame: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(sequence.encode()), purpose, frame])

    def delivered(self, sequence: str, frame: int) -> int:
        """Number of the frame that arrives instead of this one."""
        if self.name != "stutter":
            return frame
        while frame > 0 and self._random(sequence, FOR_DELIVERY, frame).random() < self.strength:
            frame -= 1
        return frame

    def apply(
        self, sequence: str, frame: int, rgb: Image | None, tir: Image | None
    ) -> tuple[Image | None, Image | None]:
        """Damage rgb [H, W, 3] uint8 and tir [H, W] or [H, W, 3], uint8 or uint16. What is missing stays missing."""
        fixed = self.name in ("stripes", "shift")  # equal in all frames of a sequence
        random = self._random(sequence, FOR_SEQUENCE) if fixed else self._random(sequence, FOR_FRAME, frame)
        if self.name == "dropped":
            if frame > 0 and rgb is not None and tir is not None and random.random() < self.strength:
                return (None, tir) if random.random() < 0.5 else (rgb, None)
            return rgb, tir
        visible, thermal = DAMAGES[self.name]
        if visible is not None and rgb is not None:
            rgb = visible(rgb, self.strength, random)
        if thermal is not None and tir is not None:
            tir = thermal(tir, self.strength, random)
        return rgb, tir


def parse_corruption(text: str, seed: int = 0) -> Corruption:
    """Parse NAME:LEVEL."""
    name, colon, level = text.partition(":")
    if not colon or not level.isdecimal():
        raise InputError(f"corruption {text!r}: expected NAME:LEVEL, for example blur:3; known are "
                         f"{', '.join(CORRUPTIONS)}, levels 1 to {LEVELS}")  # fmt: skip
    return Corruption(name, int(level), seed)


def _level(image: Image) -> float:
    """Value of one of 255 levels in this image."""
    return 1.0 if image.dtype == np.uint8 else max(float(np.ptp(image)) / 255, 1.0)


def _as_type_of(values: NDArray[np.float32], like: Image) -> Image:
    """Round and clip to the type of an image."""
    return np.clip(np.rint(values), 0, np.iinfo(like.dtype).max).astype(like.dtype)


def _blurred(image: Image, strength: float, _random: np.random.Generator) -> Image:
    import cv2

    blurred: Image = cv2.GaussianBlur(image, (0, 0), strength)
    return blurred


def _noisy(image: Image, strength: float, random: np.random.Generator) -> Image:
    noise = random.standard_normal(image.shape, np.float32) * np.float32(strength * _level(image))
    return _as_type_of(image.astype(np.float32) + noise, image)


def _dark(image: Image, strength: float, random: np.random.Generator) -> Image:
    noise = random.standard_normal(image.shape, np.float32) * np.float32(SENSOR_NOISE * _level(image))
    return _as_type_of(image.astype(np.float32) * np.float32(strength) + noise, image)


def _striped(image: Image, strength: float, random: np.random.Generator) -> Image:
    offsets = random.standard_normal(image.shape[1], np.float32) * np.float32(strength * _level(image))
    columns = offsets.reshape((1, -1) + (1,) * (image.ndim - 2))
    return _as_type_of(image.astype(np.float32) + columns, image)


def _shifted(image: Image, strength: float, random: np.random.Generator) -> Image:
    import cv2

    angle = 2 * math.pi * random.random()
    across, down = round(strength * math.cos(angle)), round(strength * math.sin(angle))
    move = np.array([[1, 0, across], [0, 1, down]], np.float64)
    height, width = image.shape[:2]
    shifted: Image = cv2.warpAffine(
        image, move, (width, height), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE
    )
    return shifted


Damage = Callable[[Image, float, np.random.Generator], Image]
DAMAGES: Mapping[str, tuple[Damage | None, Damage | None]] = {  # of visible and thermal frames
    "blur": (_blurred, _blurred),
    "noise": (_noisy, _noisy),
    "darkness": (_dark, None),
    "stripes": (None, _striped),
    "shift": (None, _shifted),
    "stutter": (None, None),
}
