"""Textures that every scene shares, made once: grain of the ground, foliage, patterns of cloth, smoke, noise."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from .figures import Bytes, Floats

GRAIN_SIDE = 256
LEAF_SIDE = 128
CLOTH_SIDE = 32
NOISE_SIDE = 768
NOISE_LEVELS = 24.0  # standard deviation of the noise tile
FOLIAGES = 10
SEED = 1  # one set of tiles for all scenes; what differs between scenes is how they are used


@dataclass(frozen=True)
class Tiles:
    # Around 128, they wrap around; each is half as large as the one before, the first [GRAIN_SIDE, GRAIN_SIDE, 4].
    grain: tuple[Bytes, ...]
    bricks: tuple[Bytes, ...]
    clouds: Bytes  # around 128, wraps around [GRAIN_SIDE, GRAIN_SIDE, 4]
    foliage: Bytes  # coverage and light [FOLIAGES, LEAF_SIDE, LEAF_SIDE, 2]
    patterns: Floats  # shares of a second colour [n, CLOTH_SIDE, CLOTH_SIDE]
    noise: Bytes  # around 128 [NOISE_SIDE, NOISE_SIDE, 4]


@functools.cache
def make_tiles() -> Tiles:
    """The same for everybody; nothing writes to them."""
    random = np.random.default_rng(SEED)
    return Tiles(
        grain=_halved(_grain(random)),
        bricks=_halved(_bricks(random)),
        clouds=_clouds(random),
        foliage=np.stack([_foliage(random, round_crown=number % 2 == 0) for number in range(FOLIAGES)]),
        patterns=_patterns(random),
        noise=_noise(random),
    )


def _noise(random: np.random.Generator) -> Bytes:
    normal = random.standard_normal((NOISE_SIDE, NOISE_SIDE, 4), dtype=np.float32)
    return np.clip(128.5 + NOISE_LEVELS * normal, 0, 255).astype(np.uint8)


def wrapped_noise(random: np.random.Generator, side: int, cells: tuple[int, ...], falloff: float = 0.6) -> Floats:
    """Smooth noise of about unit deviation that continues over its edges [side, side]."""
    total = np.zeros((side, side))
    for octave, count in enumerate(cells):
        coarse = np.pad(random.normal(0, 1, (count, count)), 2, mode="wrap")
        step = side // count
        fine = cv2.resize(coarse, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        total += falloff**octave * fine[2 * step : 2 * step + side, 2 * step : 2 * step + side]
    spread: Floats = (total - total.mean()) / total.std()
    return spread


def _halved(tile: Bytes) -> tuple[Bytes, ...]:
    """A tile at full size, a half, a quarter and an eighth, for ground that is far away."""
    sizes = [GRAIN_SIDE >> level for level in range(4)]
    return tuple(cv2.resize(tile, (size, size), interpolation=cv2.INTER_AREA).astype(np.uint8) for size in sizes)


def _clouds(random: np.random.Generator) -> Bytes:
    unit = wrapped_noise(random, GRAIN_SIDE, (4, 8, 16, 32), falloff=0.55)
    clouds: Bytes = np.clip(128 + unit[..., None] * np.array([40, 40, 36, 16]), 0, 255).astype(np.uint8)
    return clouds


def _grain(random: np.random.Generator) -> Bytes:
    shared = wrapped_noise(random, GRAIN_SIDE, (4, 16, 64, 128, 256), falloff=1.0)
    channels = [0.95 * shared + 0.16 * wrapped_noise(random, GRAIN_SIDE, (8, 64, 256), 0.8) for _ in range(3)]
    warmth = 0.3 * shared + 0.35 * wrapped_noise(random, GRAIN_SIDE, (4, 8, 32, 128), 1.0)
    return np.clip(128 + 32 * np.stack([*channels, warmth], axis=-1), 0, 255).astype(np.uint8)


def _bricks(random: np.random.Generator) -> Bytes:
    """Sixteen courses of eight bricks."""
    rows, columns, height, width = 16, 8, GRAIN_SIDE // 16, GRAIN_SIDE // 8
    tile = np.zeros((GRAIN_SIDE, GRAIN_SIDE, 4))
    for row in range(rows):
        tones = random.normal(0, 1, (columns, 1)) * np.array([22, 20, 18, 7]) + random.normal(0, 4, (columns, 4))
        course = tones.repeat(width, 0)
        course[::width] = course[1::width] = (30, 30, 30, 8)
        course = np.roll(course, (row % 2) * width // 2, axis=0)
        tile[row * height : (row + 1) * height] = course
        tile[row * height : row * height + 2] = (30, 30, 30, 8)
    tile += 9 * wrapped_noise(random, GRAIN_SIDE, (4, 32, 128), 0.8)[..., None]
    return np.clip(128 + tile, 0, 255).astype(np.uint8)


def _foliage(random: np.random.Generator, *, round_crown: bool) -> Bytes:
    """Clumps of leaves, lit from above: how much they cover, and how much light they have."""
    coverage = np.zeros((LEAF_SIDE, LEAF_SIDE), np.uint8)
    light = np.zeros((LEAF_SIDE, LEAF_SIDE), np.uint8)
    count = 900
    # Dark leaves behind and below first, light ones on top of the clumps last.
    centres = random.normal(0, 1, (16, 2)) * [0.17, 0.15] + [0.5, 0.5]
    if not round_crown:  # like a spruce: wide below
        heights = random.uniform(0.12, 0.86, 16)
        centres = np.stack([0.5 + random.uniform(-1, 1, 16) * 0.34 * heights, heights], axis=1)
    clump = random.integers(16, size=count)
    leaves = centres[clump] + random.normal(0, 0.055, (count, 2))
    above = (centres[clump, 1] - leaves[:, 1]) / 0.055  # high in the clump
    brightness = np.clip(105 + 38 * above + 55 * (0.5 - leaves[:, 1]) + random.normal(0, 26, count), 0, 255)
    for number in np.argsort(brightness + random.normal(0, 25, count)):
        x, y = (leaves[number] * LEAF_SIDE * 16).astype(int).tolist()
        size = (int(random.uniform(1.5, 4.2) * 16), int(random.uniform(1.0, 2.6) * 16))
        angle = float(random.uniform(0, 180))
        cv2.ellipse(coverage, ((x / 16, y / 16), (size[0] / 8, size[1] / 8), angle), 255, -1)
        cv2.ellipse(light, ((x / 16, y / 16), (size[0] / 8, size[1] / 8), angle), float(brightness[number]), -1)
    return np.stack([coverage, light], axis=-1)


def _patterns(random: np.random.Generator) -> Floats:
    """Stripes across and down, checks, blots, a band, a print on the chest, halves, dots."""
    row, column = np.mgrid[:CLOTH_SIDE, :CLOTH_SIDE] / CLOTH_SIDE
    blots = [wrapped_noise(random, CLOTH_SIDE, cells) for cells in ((4, 8), (2, 4), (8, 16))]
    return np.stack([
        row * 6 % 1 < 0.5,
        column * 7 % 1 < 0.4,
        0.5 * (row * 5 % 1 < 0.5) + 0.5 * (column * 5 % 1 < 0.5),
        *(blot > 0.2 for blot in blots),
        abs(row - 0.35) < 0.12,
        (abs(row - 0.4) < 0.14) & (abs(column - 0.5) < 0.2),
        row < 0.45,
        ((row * 5 % 1 - 0.5) ** 2 + (column * 5 % 1 - 0.5) ** 2) < 0.08,
        column < 0.5,
        np.clip(0.5 + 0.3 * blots[1], 0, 1),
    ]).astype(np.float64)  # fmt: skip


def cloth_pattern(random: np.random.Generator, tiles: Tiles, first: Floats, second: Floats) -> Bytes:
    """A cloth of two colours [CLOTH_SIDE, CLOTH_SIDE, 4], with folds."""
    share = tiles.patterns[random.integers(len(tiles.patterns))][..., None]
    top, left = random.integers(GRAIN_SIDE - CLOTH_SIDE, size=2)
    folds = tiles.grain[0][top : top + CLOTH_SIDE, left : left + CLOTH_SIDE].astype(np.float64) - 128
    levels = first + share * (second - first) + 0.45 * folds
    cloth: Bytes = np.clip(levels, 0, 255).astype(np.uint8)
    return cloth
