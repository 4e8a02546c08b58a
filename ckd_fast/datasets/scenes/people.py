"""People: a skeleton that walks, with clothes, hair and bags."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .figures import Builder, Bytes, Figure, Floats, Limb, Pose, with_rims
from .tiles import Tiles, cloth_pattern

SKIN, HAIR, TOP, TROUSERS, SHOES, BAG = (2 * number for number in range(6))
STRIDE = 0.86  # way of a full cycle of two steps, in body heights

CLOTHES = np.array([
    (28, 28, 32), (60, 62, 68), (120, 122, 126), (215, 214, 208), (30, 40, 75), (58, 82, 130), (150, 130, 100),
    (95, 70, 50), (170, 35, 35), (205, 60, 45), (45, 110, 60), (215, 180, 60), (60, 140, 190), (190, 110, 150),
    (110, 60, 120), (230, 120, 40), (90, 100, 60),
], dtype=np.float64)  # fmt: skip
DARK_CLOTHES = 7  # the first of them
SKINS = np.array([(224, 180, 155), (198, 150, 120), (150, 105, 80), (95, 65, 50)], dtype=np.float64)
HAIRS = np.array([(25, 20, 18), (60, 42, 30), (130, 100, 60), (150, 150, 150), (190, 50, 50), (235, 235, 230)])


@dataclass(frozen=True)
class Person:
    palette: Floats
    cloth: Bytes | None
    height: float  # metres
    build: float  # thickness; 1 is usual
    bag: bool
    coat: float  # how far the top reaches below the hips, in body heights

    def figure(self, pose: Pose) -> Figure:
        h, wide = self.height, self.height * self.build
        builder = Builder(pose)
        legs = [self._leg(pose.phase + side * math.pi, pose.swing) for side in (0, 1)]
        hip = -min(min(ankle[1], toe[1]) for _, ankle, toe in legs) + 0.012 * h  # the lower foot is on the ground
        limbs = []
        for side, (knee, ankle, toe) in zip((1, -1), legs, strict=True):
            left = side * 0.05 * wide
            joints = [(forward, left, hip + up) for forward, up in ((0.0, 0.0), knee, ankle, toe)]
            limbs += [
                Limb(joints[0], joints[1], 0.056 * wide, 0.04 * wide, TROUSERS),
                Limb(joints[1], joints[2], 0.04 * wide, 0.027 * wide, TROUSERS),
                Limb(joints[2], joints[3], 0.024 * h, 0.018 * h, SHOES),
            ]
        lean = 0.02 * h * pose.swing
        shoulder = hip + 0.285 * h
        for side in (1, -1):
            swing = -side * 0.5 * pose.swing * math.sin(pose.phase)
            start = (lean, side * 0.108 * wide, shoulder - 0.02 * h)
            elbow = _ahead(start, swing, 0.165 * h)
            wrist = _ahead(elbow, swing + 0.25 + 0.35 * pose.swing * max(0.0, swing), 0.145 * h)
            limbs += [
                Limb(start, elbow, 0.034 * wide, 0.028 * wide, TOP),
                Limb(elbow, wrist, 0.028 * wide, 0.021 * wide, TOP),
                Limb(wrist, _ahead(wrist, swing + 0.3, 0.03 * h), 0.021 * h, 0.019 * h, SKIN),
            ]
        head = shoulder + 0.125 * h
        limbs += [
            Limb((lean, 0, shoulder), (lean * 1.4, 0, head - 0.03 * h), 0.03 * h, 0.03 * h, SKIN),
            Limb((lean * 1.5 + 0.012 * h, 0, head - 0.02 * h), (lean * 1.5 + 0.01 * h, 0, head + 0.015 * h),
                 0.047 * h, 0.052 * h, SKIN),
            Limb((lean * 1.5 - 0.018 * h, 0, head), (lean * 1.5 - 0.008 * h, 0, head + 0.03 * h),
                 0.05 * h, 0.054 * h, HAIR),
        ]  # fmt: skip
        if self.bag:
            back = lean - 0.105 * wide
            limbs.append(Limb((back, 0, hip + 0.08 * h), (back, 0, hip + 0.22 * h), 0.07 * h, 0.06 * h, BAG))
        builder.limbs(limbs)
        below = -self.coat * h
        builder.hull(
            [
                Limb((0, side * 0.045 * wide, hip + below), (lean, side * 0.07 * wide, shoulder - 0.03 * h),
                     0.06 * wide, 0.062 * wide, TOP)
                for side in (1, -1)
            ],
            cloth=self.cloth is not None,
        )  # fmt: skip
        return builder.figure()

    def _leg(self, phase: float, swing: float) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
        """Knee, ankle and toe, forward and up from the hip in metres."""
        thigh = 0.46 * swing * math.sin(phase) + 0.05
        bend = swing * (0.12 + 0.85 * max(0.0, math.cos(phase)) ** 1.5)
        shin = thigh - bend
        knee = (0.245 * self.height * math.sin(thigh), -0.245 * self.height * math.cos(thigh))
        ankle = (knee[0] + 0.24 * self.height * math.sin(shin), knee[1] - 0.24 * self.height * math.cos(shin))
        foot = 0.6 * shin
        toe = (ankle[0] + 0.095 * self.height * math.cos(foot), ankle[1] + 0.095 * self.height * math.sin(foot))
        return knee, ankle, toe


def _ahead(start: tuple[float, float, float], angle: float, length: float) -> tuple[float, float, float]:
    """The other end of a bar that hangs from a point, swung forward by an angle."""
    return start[0] + length * math.sin(angle), start[1], start[2] - length * math.cos(angle)


def person(random: np.random.Generator, tiles: Tiles) -> Person:
    """Somebody."""
    top, trousers, other, shoes, bag = (_colour(random, CLOTHES) for _ in range(5))
    if random.random() < 0.6:
        trousers = _colour(random, CLOTHES[:DARK_CLOTHES])
    skin = SKINS[random.integers(len(SKINS))]
    hair = HAIRS[min(int(random.exponential(1.2)), len(HAIRS) - 1)]
    body, layers = random.uniform(185, 235), random.uniform(0.35, 0.95, 2)  # how much warmth clothes let through
    ambient = 85.0
    warmth = [
        body,
        ambient + 0.75 * (body - ambient),
        *(ambient + layers * (body - ambient)),
        ambient + 30,
        ambient + 12,
    ]
    middles = np.column_stack([np.stack([skin, hair, top, trousers, shoes, bag]), warmth])
    pattern = cloth_pattern(random, tiles, middles[TOP // 2], np.append(other, warmth[2] - 15))
    return Person(
        palette=with_rims(middles),
        cloth=pattern if random.random() < 0.75 else None,
        height=random.uniform(1.55, 1.88),
        build=random.uniform(0.88, 1.2),
        bag=bool(random.random() < 0.25),
        coat=float(random.choice([-0.01, 0.02, 0.16], p=[0.4, 0.35, 0.25])),
    )


def _colour(random: np.random.Generator, colours: Floats) -> Floats:
    """One of them, more or less bright, faded."""
    colour = colours[random.integers(len(colours))]
    faded = colour + random.uniform(0, 0.5) * (colour.mean() - colour)
    made: Floats = np.clip(faded * random.uniform(0.75, 1.2) + random.normal(0, 6, 3), 5, 245)
    return made
