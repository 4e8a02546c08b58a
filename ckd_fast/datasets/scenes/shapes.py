"""Objects without a name: random outlines with random patterns, so that a tracker learns to match, not to classify."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .figures import Bytes, Figure, Floats, Part, Pose, laid_over
from .tiles import Tiles, cloth_pattern

CORNERS = 36
_PHI = np.linspace(0, 2 * math.pi, CORNERS, endpoint=False)


@dataclass(frozen=True)
class Shape:
    """An outline with radius 1 + a2 cos(2 phi) + b2 sin(2 phi) + a3 cos(3 phi) + b3 sin(3 phi), stretched."""

    palette: Floats
    cloth: Bytes | None
    height: float  # about, in metres
    aspect: float  # width by height
    boundary: tuple[float, float, float, float]  # a2, b2, a3, b3

    def figure(self, pose: Pose) -> Figure:
        """It hangs above its point on the ground, turned by its heading, and wobbles with its phase."""
        a2, b2, a3, b3 = (value + 0.05 * pose.swing * math.sin(pose.phase + number)
                          for number, value in enumerate(self.boundary))  # fmt: skip
        radius = 1 + a2 * np.cos(2 * _PHI) + b2 * np.sin(2 * _PHI) + a3 * np.cos(3 * _PHI) + b3 * np.sin(3 * _PHI)
        half = 0.5 * self.height * pose.metre
        u, v = radius * np.cos(_PHI) * half * self.aspect, radius * np.sin(_PHI) * half
        turn = 0.35 * math.sin(pose.heading)
        cos, sin = math.cos(turn), math.sin(turn)
        centre = np.array([pose.x, pose.y - half])
        upright = np.stack([u, v], axis=1)
        across = np.array([[cos, -sin], [sin, cos]])
        outline = upright @ across.T + centre
        core = 0.8 * (upright @ across.T) + centre
        lies = laid_over(upright)
        lies = np.column_stack([across @ lies[:, :2], across @ lies[:, 2] + centre])
        return Figure(np.concatenate([outline, core]), (Part(CORNERS, 1, lies), Part(2 * CORNERS, 0, lies)))


def shape(random: np.random.Generator, tiles: Tiles) -> Shape:
    """Anything."""
    colours, warmth = random.uniform(20, 235, (2, 3)), random.uniform(25, 235)
    if random.random() < 0.7:
        warmth = random.uniform(150, 235)
    palette = np.array([[*colours[0], warmth], [*(0.8 * colours[0]), warmth - 10]])
    pattern = cloth_pattern(random, tiles, palette[0], np.append(colours[1], warmth + random.uniform(-30, 30)))
    return Shape(
        palette, pattern, random.uniform(0.7, 1.9), float(np.exp(random.uniform(-1.1, 0.7))),
        tuple(random.uniform(-0.12, 0.12, 4).tolist()),
    )  # fmt: skip
