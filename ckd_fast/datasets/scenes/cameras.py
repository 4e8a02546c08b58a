"""How both cameras see a scene: light, smoke and glare for one, blur, gain and offset for the other, noise for both."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .canvas import View
from .figures import Bytes, Floats
from .tiles import GRAIN_SIDE, NOISE_LEVELS, NOISE_SIDE, Tiles

LAMPLIGHT, SUNLIGHT = (1.0, 0.86, 0.6), (1.0, 0.98, 0.93)  # red, green and blue
HAZE = np.array([205.0, 208.0, 210.0])  # of smoke
THROUGH_SMOKE = 0.12  # what the densest smoke takes from the thermal contrast


@dataclass(frozen=True)
class Glow:
    """A light in the visible camera: a lamp at night, or the sun in the lens."""

    x: float  # in the scene
    y: float
    radius: float
    strength: float  # levels in its middle
    colour: tuple[float, float, float] = LAMPLIGHT


@dataclass(frozen=True)
class Exposure:
    light: float = 1.0  # factor of the visible levels; near 0 in the dark
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)  # white balance
    gain: float = 1.0  # the thermal camera shows gain * warmth + offset
    offset: float = 0.0
    noise: float = 0.0  # standard deviation of both sensors' noise, in levels
    columns: float = 0.0  # standard deviation of the thermal sensor's columns, in levels
    visible_blur: float = 0.0  # standard deviation in pixels of the scene
    thermal_blur: float = 0.0
    smoke: float = 0.0  # largest share of the visible picture that smoke hides
    drift: tuple[float, float] = (0.0, 0.0)  # of the smoke
    glows: tuple[Glow, ...] = ()


def expose(pixels: Bytes, view: View, exposure: Exposure, tiles: Tiles, noise_seed: int) -> Bytes:
    """What the cameras make of a scene [H, W, 4]."""
    if exposure.smoke:
        pixels = _smoked(pixels, view, exposure, tiles)
    pixels = _blurred(pixels, slice(0, 3), exposure.visible_blur / view.pixel)
    pixels = _blurred(pixels, slice(3, 4), exposure.thermal_blur / view.pixel)
    factors = [exposure.light * value for value in exposure.tint]
    table = np.empty((256, 1, 4))
    table[:, 0] = np.arange(256)[:, None] * [*factors, exposure.gain] + [0, 0, 0, exposure.offset]
    pixels = cv2.LUT(pixels, np.clip(np.rint(table), 0, 255).astype(np.uint8).reshape(1, 256, 4)).astype(np.uint8)
    for glow in exposure.glows:
        _shine(pixels, view, glow)
    if not exposure.noise and not exposure.columns:
        return pixels
    random = np.random.default_rng(noise_seed)
    grain = _noise(random, pixels.shape[:2], tiles)
    strength = exposure.noise / NOISE_LEVELS
    noisy = cv2.addWeighted(pixels, 1.0, grain, strength, -128 * strength)
    if exposure.columns:
        stripes = np.rint(random.normal(0, exposure.columns, pixels.shape[1])).astype(np.int16)
        noisy[..., 3] = np.clip(noisy[..., 3] + stripes, 0, 255)
    return noisy.astype(np.uint8)


def _noise(random: np.random.Generator, size: tuple[int, ...], tiles: Tiles) -> Bytes:
    """A random part of the noise tile, which repeats in pictures that are larger."""
    noise, more = tiles.noise, [max(0, side - NOISE_SIDE) for side in size]
    if any(more):
        noise = cv2.copyMakeBorder(noise, 0, more[0], 0, more[1], cv2.BORDER_WRAP).astype(np.uint8)
    top, left = (int(random.integers(whole - side + 1)) for whole, side in zip(noise.shape[:2], size, strict=True))
    return noise[top : top + size[0], left : left + size[1]]


def _blurred(pixels: Bytes, channels: slice, deviation: float) -> Bytes:
    if deviation < 0.3:
        return pixels
    soft = cv2.GaussianBlur(np.ascontiguousarray(pixels[..., channels]), (0, 0), deviation)
    pixels[..., channels] = soft.reshape(*pixels.shape[:2], -1)
    return pixels


def _smoked(pixels: Bytes, view: View, exposure: Exposure, tiles: Tiles) -> Bytes:
    """Drifting smoke in front of everything; a thermal camera sees through most of it."""
    step = GRAIN_SIDE / 900
    onto = np.array([
        [step * view.pixel, 0, step * view.left + exposure.drift[0]],
        [0, step * view.pixel, step * view.top + exposure.drift[1]],
    ])  # fmt: skip
    size = (pixels.shape[1], pixels.shape[0])
    thickness = cv2.warpAffine(
        tiles.clouds[..., 0].copy(),
        onto,
        size,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_WRAP,
    )
    share = np.clip((thickness.astype(np.float32) - 20) / 110, 0, 1)[..., None] * exposure.smoke
    seen = pixels.astype(np.float32)
    middle = float(seen[..., 3].mean())
    seen[..., :3] += share * (HAZE.astype(np.float32) - seen[..., :3])
    seen[..., 3:] += THROUGH_SMOKE * share * (middle - seen[..., 3:])
    return np.rint(seen).astype(np.uint8)


def _shine(pixels: Bytes, view: View, glow: Glow) -> None:
    """Add a glow to the visible levels."""
    height, width = pixels.shape[:2]
    (x, y), radius = view.corners(np.array([glow.x, glow.y])), glow.radius / view.pixel
    left, right = int(np.clip(x - 2.5 * radius, 0, width)), int(np.clip(x + 2.5 * radius, 0, width))
    top, bottom = int(np.clip(y - 2.5 * radius, 0, height)), int(np.clip(y + 2.5 * radius, 0, height))
    if left >= right or top >= bottom:
        return
    across, down = (np.arange(left, right) + 0.5 - x) / radius, (np.arange(top, bottom) + 0.5 - y) / radius
    away = across[None] ** 2 + down[:, None] ** 2
    levels: Floats = glow.strength * (0.45 * np.exp(-away) + 2 * np.exp(-60 * away)) - 0.001 * glow.strength
    part = pixels[top:bottom, left:right, :3]
    part[:] = np.clip(part + np.maximum(levels, 0)[..., None] * np.array(glow.colour), 0, 255)
