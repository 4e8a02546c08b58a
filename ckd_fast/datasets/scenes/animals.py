"""Animals on four legs: dogs, deer, sheep, cattle, horses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .figures import Builder, Bytes, Figure, Floats, Limb, Pose, with_rims
from .tiles import Tiles, cloth_pattern

COAT, HEAD, LEGS, TAIL = (2 * number for number in range(4))

FURS = np.array([
    (40, 32, 28), (110, 75, 45), (160, 120, 75), (210, 200, 185), (70, 66, 64), (150, 70, 40), (225, 215, 200),
], dtype=np.float64)  # fmt: skip


@dataclass(frozen=True)
class Build:
    """Sizes of a kind, in shoulder heights."""

    height: tuple[float, float]  # of the shoulder, in metres
    length: float  # from hip to chest
    trunk: float  # radius
    neck: float  # length
    raised: float  # how high the neck points, radians
    head: float  # length
    leg: float  # radius above
    tail: float  # length


KINDS = (
    Build((0.45, 0.7), 0.95, 0.17, 0.28, 0.75, 0.28, 0.06, 0.42),  # dog
    Build((0.8, 1.1), 0.95, 0.2, 0.5, 1.0, 0.26, 0.05, 0.12),  # deer
    Build((0.6, 0.75), 1.0, 0.3, 0.25, 0.5, 0.26, 0.055, 0.15),  # sheep
    Build((1.25, 1.45), 1.15, 0.27, 0.35, 0.25, 0.32, 0.07, 0.5),  # cattle
    Build((1.45, 1.65), 1.0, 0.21, 0.48, 0.8, 0.36, 0.06, 0.45),  # horse
)


@dataclass(frozen=True)
class Animal:
    palette: Floats
    cloth: Bytes | None  # of the coat
    build: Build
    height: float  # of the shoulder, metres

    def figure(self, pose: Pose) -> Figure:
        build, h, builder = self.build, self.height, Builder(pose)
        half, middle = 0.5 * build.length * h, (1 - build.trunk) * h
        limbs = []
        for number, (along, side) in enumerate(((half, 1), (half, -1), (-half, 1), (-half, -1))):
            swing = 0.42 * pose.swing * math.sin(pose.phase + (0, math.pi, math.pi, 0)[number] + 0.4 * (along < 0))
            lift = 0.5 * pose.swing * max(0.0, math.cos(pose.phase + (0, math.pi, math.pi, 0)[number]))
            left = side * 0.55 * build.trunk * h
            knee = (along + 0.36 * h * math.sin(swing), left, middle - 0.06 * h - 0.36 * h * math.cos(swing))
            below = swing - lift
            foot = (knee[0] + knee[2] * math.sin(below), left, max(knee[2] * (1 - math.cos(below)), 0.02 * h))
            limbs += [
                Limb((along, left, middle), knee, 1.5 * build.leg * h, 0.75 * build.leg * h, LEGS),
                Limb(knee, foot, 0.7 * build.leg * h, 0.5 * build.leg * h, LEGS),
            ]
        nod = 0.06 * pose.swing * math.sin(2 * pose.phase)
        chest = (half * 1.05, 0.0, middle + 0.25 * build.trunk * h)
        raised = build.raised + nod
        poll = (chest[0] + build.neck * h * math.cos(raised), 0.0, chest[2] + build.neck * h * math.sin(raised))
        nose = (poll[0] + build.head * h * 0.85, 0.0, poll[2] - build.head * h * 0.45)
        limbs += [
            Limb(chest, poll, 0.6 * build.trunk * h, 0.09 * h, COAT),
            Limb(poll, nose, 0.09 * h, 0.045 * h, HEAD),
            *(Limb((poll[0] - 0.03 * h, side * 0.06 * h, poll[2] + 0.04 * h),
                   (poll[0] - 0.06 * h, side * 0.09 * h, poll[2] + 0.14 * h), 0.03 * h, 0.012 * h, HEAD)
              for side in (1, -1)),
            Limb((-half - build.trunk * 0.8 * h, 0, middle + 0.1 * h),
                 (-half - (build.trunk + 0.6 * build.tail) * h, 0.1 * h * math.sin(pose.phase),
                  middle + (0.1 - 0.8 * build.tail) * h), 0.035 * h, 0.02 * h, TAIL),
        ]  # fmt: skip
        builder.limbs(limbs)
        builder.hull(
            [Limb((-half, side * 0.2 * build.trunk * h, middle), (half, side * 0.2 * build.trunk * h, middle),
                  build.trunk * 0.95 * h, build.trunk * 1.05 * h, COAT) for side in (1, -1)],
            cloth=self.cloth is not None,
        )  # fmt: skip
        return builder.figure()


def animal(random: np.random.Generator, tiles: Tiles) -> Animal:
    """A beast of some kind."""
    build = KINDS[random.integers(len(KINDS))]
    fur, other = FURS[random.integers(len(FURS), size=2)] * random.uniform(0.8, 1.15)
    body = random.uniform(150, 225)
    middles = np.array([[*fur, body - 15], [*(0.9 * fur), body + 12], [*(0.8 * fur), body - 25], [*fur, body - 40]])
    pattern = cloth_pattern(random, tiles, middles[0], np.append(other, body - 8)) if random.random() < 0.5 else None
    return Animal(with_rims(np.clip(middles, 5, 250)), pattern, build, random.uniform(*build.height))
