"""How things move in a synthetic clip: smooth ways over the ground, and gaits that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .scenes import casting
from .scenes.backdrop import FOCAL, Backdrop
from .scenes.figures import Actor, Floats, Pose, Standing
from .scenes.people import Person
from .scenes.vehicles import Vehicle

NEAREST = 0.96  # share of the frame's height below which nobody walks
FULL_SWING = 0.03  # metres a frame at which arms and legs swing fully


@dataclass(frozen=True)
class Wave:
    """A smooth function of time: a sum of sines about a middle."""

    middle: float
    amplitudes: tuple[float, ...]
    frequencies: tuple[float, ...]  # radians per frame
    phases: tuple[float, ...]

    def at(self, time: float) -> float:
        return float(self.over(np.array([float(time)]))[0])

    def over(self, times: Floats) -> Floats:
        """Its values at many times."""
        terms = zip(self.amplitudes, self.frequencies, self.phases, strict=True)
        return self.middle + sum((a * np.sin(f * times + p) for a, f, p in terms), np.zeros_like(times))


def wave(random: np.random.Generator, middle: float, amplitude: float, shortest: float, longest: float) -> Wave:
    """Three sines with periods between two bounds in frames; they never leave `amplitude` about the middle."""
    shares = random.dirichlet([2.0, 2.0, 2.0]) * amplitude
    frequencies = 2 * math.pi / random.uniform(shortest, longest, 3)
    phases = random.uniform(0, 2 * math.pi, 3)
    return Wave(middle, *(tuple(values.tolist()) for values in (shares, frequencies, phases)))


@dataclass(frozen=True)
class Walk:
    """An actor on its way; all values by frame [frames]."""

    actor: Actor
    x: Floats  # of the point on the ground
    y: Floats
    metre: Floats
    heading: Floats
    phase: Floats
    swing: Floats

    def at(self, index: int) -> Standing:
        values = (float(v[index]) for v in (self.x, self.y, self.metre, self.heading, self.phase, self.swing))
        return Standing(self.actor, Pose(*values))


@dataclass(frozen=True)
class Stage:
    """Where a clip's actors move."""

    width: float
    height: float
    frames: int
    backdrop: Backdrop
    margin: float  # pixels at the frame's edges that a moving camera may not show

    def walk(self, random: np.random.Generator, actor: Actor, near: Walk | None = None) -> Walk:
        """A way through the frame, or about another's way."""
        times = np.arange(-1.0, self.frames + 1)  # one more at both ends, for speeds
        horizon = self.backdrop.horizon
        if near is None:
            share = {Person: (0.15, 0.3), Vehicle: (0.1, 0.2)}.get(type(actor), (0.11, 0.22))
            tall = random.uniform(*share) * min(self.width, self.height)
            y = horizon + self.backdrop.camera_height * tall / actor.height
            y = float(np.clip(y, max(horizon + 0.1 * self.height, 0.42 * self.height), 0.74 * self.height))
            tall = (y - horizon) / self.backdrop.camera_height * actor.height
            amplitude = min(0.2 * (y - horizon), NEAREST * self.height - self.margin - y, y - 1.2 * tall - self.margin)
            down = wave(random, y, max(amplitude, 0), 160, 420).over(times)
            reach = (2.6 if isinstance(actor, Vehicle) else 0.6) * tall / actor.height + self.margin
            room = max(self.width / 2 - reach, 0)
            amplitude = room * random.uniform(0.5, 0.95)
            middle = self.width / 2 + random.uniform(-1, 1) * (room - amplitude)
            across = wave(random, middle, amplitude, 150, 420).over(times)
        else:
            usual = float(near.metre.mean())
            aside, size = random.uniform(-2, 2) * usual, 1.5 if isinstance(actor, Vehicle) else 0.6
            ways = np.concatenate([near.x[:1], near.x, near.x[-1:]]), np.concatenate([near.y[:1], near.y, near.y[-1:]])
            across = ways[0] + wave(random, aside, 3 * size * usual, 120, 300).over(times)
            down = ways[1] + wave(random, 0, 0.06 * self.height, 120, 300).over(times)
            down = np.clip(down, horizon + 0.06 * self.height, NEAREST * self.height)
        metre = (down[1:-1] - horizon) / self.backdrop.camera_height
        right = (across[2:] - across[:-2]) / 2 / metre  # metres a frame
        depth = FOCAL * self.width / np.maximum(metre, 1e-3)
        away = -(down[2:] - down[:-2]) / 2 * depth / (down[1:-1] - horizon)
        # Heights hide in perspective: much of a way into the depth would look like running.
        away = np.clip(away, -0.05, 0.05)
        speed = np.hypot(right, away)
        phase = random.uniform(0, 2 * math.pi) + np.cumsum(speed) / casting.stride(actor) * 2 * math.pi
        swing = np.clip(speed / FULL_SWING, 0.15, 1)
        return Walk(actor, across[1:-1], down[1:-1], metre, np.arctan2(away, right), phase, swing)

    def cross(self, actor: Actor, target: Walk, when: int, pace: float) -> Walk:
        """Right in front of the target in one frame, moving at some metres a frame across, or not at all."""
        metre = float(target.metre[when]) * 1.04
        y = self.backdrop.horizon + self.backdrop.camera_height * metre
        times = np.arange(float(self.frames)) - when
        same = np.ones(self.frames)
        phase = 2 * math.pi * abs(pace) * times / casting.stride(actor)
        heading = math.pi if pace < 0 else 0.0
        return Walk(
            actor, target.x[when] + pace * metre * times, y * same, metre * same, heading * same, phase,
            same * float(pace != 0),
        )  # fmt: skip
