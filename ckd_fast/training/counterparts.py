"""The other modality of footage from one camera, made from its crops: a thermal-like image, or a visible-like one.

Few videos have a twin. To learn to compare appearances, a tracker needs edges in the same places, and levels that
follow another rule, the same in both views:

    made = blur(curve(mix(r, g, b)))    a weighted mean of the channels, then a random curve, rising or falling;
                                        visible-like: three related curves, one per channel

The curve may be flat somewhere, as a camera is that does not see a difference.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
KNOTS = 6  # of a curve


def thermal_like(crops: Sequence[Image], random: np.random.Generator) -> list[Image]:
    """Gray images from visible ones [H, W, 3]."""
    weights = random.dirichlet((1.5, 1.5, 1.5)).astype(np.float32)
    curve, blur, noise = _curve(random), random.uniform(0, 1.2), random.uniform(0, 6)
    made = []
    for crop in crops:
        levels = cv2.LUT(cv2.transform(crop, weights[None]).astype(np.uint8), curve)
        gray = levels.astype(np.uint8, copy=False)[..., None]
        made.append(np.repeat(_sensed(gray, blur, noise, random), 3, axis=2))
    return made


def visible_like(crops: Sequence[Image], random: np.random.Generator) -> list[Image]:
    """Coloured images from thermal ones [H, W, 3], whose channels are equal."""
    common, colour = _curve(random).astype(np.float32), random.uniform(0, 0.6)
    curves = [common * (1 - colour) + _curve(random).astype(np.float32) * colour for _ in range(3)]
    table = np.stack(curves, axis=1).round().astype(np.uint8)  # [256, 3]
    blur, noise = random.uniform(0, 1.2), random.uniform(0, 6)
    return [_sensed(table[crop[..., 0]], blur, noise, random) for crop in crops]


def _curve(random: np.random.Generator) -> Image:
    """Level to level [256]: mostly rising or mostly falling, with a random range and slope."""
    steps = random.gamma(0.7, 1.0, KNOTS - 1) * np.where(random.random(KNOTS - 1) < 0.12, -0.7, 1.0)
    knots = np.concatenate([[0.0], np.cumsum(steps)])
    knots = (knots - knots.min()) / max(float(np.ptp(knots)), 1e-6)
    if random.random() < 0.4:
        knots = 1 - knots
    low, width = random.uniform(0, 110), random.uniform(60, 255)
    levels = np.interp(np.arange(256), np.linspace(0, 255, KNOTS), low + knots * width)
    curve: Image = levels.clip(0, 255).astype(np.uint8)
    return curve


def _sensed(image: Image, blur: float, noise: float, random: np.random.Generator) -> Image:
    """What a camera with this blur and noise, in pixels and levels, sees; [H, W, C] -> [H, W, C]."""
    seen = image.astype(np.float32)
    if blur > 0.4:
        seen = cv2.GaussianBlur(seen, (0, 0), blur).reshape(image.shape).astype(np.float32)
    seen += noise * random.standard_normal(image.shape, dtype=np.float32)
    return seen.clip(0, 255).astype(np.uint8)
