"""Seeded synthetic RGBT clips with ground truth, hard in the ways that real ones are.

A person, vehicle, animal or nameless object moves through a scene among others of its kind, while the camera pans,
zooms and shakes. Once something stands or passes in front of it. In a dark stretch (or one of smoke, or of glare) only
thermal shows the target; in a thermal crossover, where what moves is as warm as what is behind it, only RGB does.

This file says what is in a clip and how it moves; `scenes` says what it looks like. Frame t depends on (seed, t) alone,
so frames can be drawn in any order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ckd_fast.errors import InputError
from ckd_fast.types import Box

from .motion import Stage, Walk, wave
from .scenes import casting
from .scenes.backdrop import Backdrop, landscape, metre_at
from .scenes.cameras import SUNLIGHT, Exposure, Glow
from .scenes.canvas import View
from .scenes.figures import Pose, Standing
from .scenes.people import Person
from .scenes.photos import photo_backdrop
from .scenes.render import Moment, render, visible_share
from .scenes.scenery import Post
from .scenes.tiles import make_tiles
from .scenes.vehicles import Vehicle

MIN_SIDE_PX = 64
MAX_PIXELS = 1 << 25
DARK_LIGHT = 0.04  # factor of the visible levels in the dark stretch
DARK_RAMP, CROSSOVER_RAMP = 5, 10  # frames in which each of them comes and goes
HIDDEN_SHARE = 0.01  # with less of the target in view, it is hidden
OCCLUDED_SHARE = 0.95  # with less of it, it is occluded
COMPANY = 0.5  # of the others go about with the target
MEETING_STEP = 3  # frames between those in which a meeting of target and occluder is looked for
LONGEST_MEETING = 0.25  # share of a clip in which the occluder may be near the target
WITHOUT_HIDING = 60  # how many frames of a meeting that should not be are better than never to be hidden
CANDIDATES = 40  # occluders to choose from
TRIES = 12  # places for each thing until one does not cover the target in the first frame
# Random streams of a clip, drawn from (seed, purpose, ...).
CONTENT, SENSOR_NOISE = 0, 1


@dataclass(frozen=True)
class ClipConfig:
    # of both modalities, in pixels
    width: int = 640
    height: int = 480
    frames: int = 120  # length
    seed: int = 0  # two clips with equal settings are equal
    distractors: int = 4  # others of the target's kind
    clutter: int = 12  # things that stand around
    dark: bool = True  # a stretch of darkness, smoke or glare, in which the visible camera shows next to nothing
    crossover: bool = True  # a stretch in which the target is as warm as the background
    occlusion: bool = True  # things may cover the target, and once something does
    camera_motion: float = 0.04  # amplitude in multiples of the frame's shorter side
    noise: float = 4.0  # standard deviation of the sensors' noise, in levels
    # folder of real frames to play in front of: `visible/` and, with the same names, `infrared/`; empty: drawn scenes
    backgrounds: str = ""

    def __post_init__(self) -> None:
        if self.width < MIN_SIDE_PX or self.height < MIN_SIDE_PX:
            raise InputError(f"size {self.width}x{self.height}: expected at least {MIN_SIDE_PX}x{MIN_SIDE_PX}")
        if self.width * self.height > MAX_PIXELS:
            raise InputError(f"size {self.width}x{self.height}: expected at most {MAX_PIXELS} pixels")
        if self.frames < 1:
            raise InputError(f"frames={self.frames}: expected at least 1")
        if self.seed < 0 or self.distractors < 0 or self.clutter < 0:
            raise InputError("seed, distractors and clutter: expected whole numbers from 0")
        if not 0 <= self.camera_motion <= 0.2 or not 0 <= self.noise <= 64:
            raise InputError("expected camera_motion in [0, 0.2] and noise in [0, 64]")


@dataclass(frozen=True)
class SyntheticFrame:
    rgb: NDArray[np.uint8]  # [H, W, 3] uint8
    tir: NDArray[np.uint8]  # [H, W] uint8
    box: Box  # the target (x, y, w, h) in pixels, as if nothing were in front of it
    dark: bool  # only thermal shows the target
    crossover: bool  # only RGB shows the target
    visible_share: float  # of the target, 0 to 1: the rest is covered by other things or beyond the frame

    @property
    def occluded(self) -> bool:
        """Something covers a part of the target."""
        return self.visible_share < OCCLUDED_SHARE

    @property
    def hidden(self) -> bool:
        """Nothing of the target is to be seen."""
        return self.visible_share < HIDDEN_SHARE


class SyntheticClip:
    """A clip; `clip[t]` draws frame t, iterating draws all."""

    def __init__(self, config: ClipConfig) -> None:
        self.config = config
        self._tiles = make_tiles()
        random = np.random.default_rng([config.seed, CONTENT])
        width, height, length = config.width, config.height, config.frames
        motion = config.camera_motion * min(width, height)
        self._pan = [wave(random, 0, motion, 60, 240) for _ in range(2)]
        self._shake = [wave(random, 0, 0.05 * motion, 3, 9) for _ in range(2)]
        self._zoom = wave(random, 1, 1.2 * config.camera_motion, 80, 240)
        self._backdrop: Backdrop = (
            photo_backdrop(random, Path(config.backgrounds), width, height)
            if config.backgrounds
            else landscape(random, self._tiles, width, height)
        )
        margin = 1.05 * motion + 0.6 * config.camera_motion * max(width, height)
        self._stage = Stage(width, height, length, self._backdrop, margin)
        self._target = self._stage.walk(random, casting.target(random, self._tiles))
        self._first = self._target.at(0).figure.box()
        self._dark = _stretch(random, length, 0.30, 0.15) if config.dark else range(0)
        self._crossover = _stretch(random, length, 0.62, 0.15) if config.crossover else range(0)
        self._shadows = (random.uniform(-1.2, 1.2), random.uniform(0.1, 0.35)) if random.random() < 0.5 else None
        self._exposure = _exposure(random, config.noise, height)
        self._trouble = str(random.choice(["darkness", "smoke", "glare"], p=[0.6, 0.25, 0.15]))
        others = (self._other(random) for _ in range(config.distractors))
        self._others = [other for other in others if other is not None]
        self._scenery = tuple(self._prop(random) for _ in range(config.clutter))
        self._occluder = self._occluding(random) if config.occlusion else None

    def __len__(self) -> int:
        return self.config.frames

    def __iter__(self) -> Iterator[SyntheticFrame]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> SyntheticFrame:
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        noise_seed = np.random.SeedSequence([self.config.seed, SENSOR_NOISE, index]).generate_state(1)[0]
        moment, view, size = self._moment(index), self._view(index), (self.config.height, self.config.width)
        picture = render(moment, view, size, self._tiles, int(noise_seed))
        return SyntheticFrame(
            np.ascontiguousarray(picture[..., :3]),
            np.ascontiguousarray(picture[..., 3]),
            view.box(moment.target.figure.box()),
            index in self._dark,
            index in self._crossover,
            visible_share(moment, view, size, self._tiles),
        )

    def boxes(self) -> list[Box]:
        """The ground truth of every frame, without drawing."""
        return [self._view(index).box(self._target.at(index).figure.box()) for index in range(len(self))]

    def _view(self, index: int) -> View:
        """What the camera sees now: it pans, shakes, and zooms about the frame's middle."""
        zoom, sides = self._zoom.at(index), (self.config.width, self.config.height)
        left, top = (
            pan.at(index) + shake.at(index) + 0.5 * side * (1 - 1 / zoom)
            for pan, shake, side in zip(self._pan, self._shake, sides, strict=True)
        )
        return View(left, top, 1 / zoom)

    def _moment(self, index: int) -> Moment:
        darkness = _ramp(self._dark, index, DARK_RAMP)
        occluder = () if self._occluder is None else (self._occluder.at(index),)
        return Moment(
            backdrop=self._backdrop,
            scenery=(*self._scenery, *occluder),
            others=tuple(other.at(index) for other in self._others),
            target=self._target.at(index),
            exposure=self._troubled(darkness, index) if darkness else self._exposure,
            crossover=_ramp(self._crossover, index, CROSSOVER_RAMP),
            shadows=None if darkness else self._shadows,
            target_in_front=not self.config.occlusion,
        )

    def _troubled(self, darkness: float, index: int) -> Exposure:
        """How the cameras see the scene in the dark stretch."""
        width, height = self.config.width, self.config.height
        if self._trouble == "smoke":
            return dataclasses.replace(self._exposure, smoke=0.97 * darkness, drift=(0.6 * index, 0.1 * index))
        if self._trouble == "glare":
            sun = Glow(0.6 * width, 0.3 * height, 0.8 * max(width, height), 520 * darkness, SUNLIGHT)
            return dataclasses.replace(self._exposure, glows=(sun,))
        lamps = tuple(
            Glow(*each.actor.lamp(each.pose), 2.2 * each.pose.metre, 120 * darkness)
            for each in self._scenery
            if isinstance(each.actor, Post) and each.actor.arm
        )
        light = self._exposure.light * (1 - darkness * (1 - DARK_LIGHT))
        return dataclasses.replace(self._exposure, light=light, glows=lamps)

    def _other(self, random: np.random.Generator) -> Walk | None:
        """One of the target's kind, on its own way or in the target's company; None where it would be in the way."""
        for _ in range(TRIES):
            actor = casting.lookalike(random, self._tiles, self._target.actor)
            near = self._target if random.random() < COMPANY else None
            walk = self._stage.walk(random, actor, near)
            if walk.y[0] < self._target.y[0] or not _overlap(walk.at(0).figure.box(), self._first):
                return walk
        return None

    def _prop(self, random: np.random.Generator) -> Standing:
        """Something that stands around, behind all of the target's way, or beside it and slender."""
        width, height = self.config.width, self.config.height
        highest = max(self._backdrop.horizon + 0.08 * height, 0.1 * height)
        behind = max(float(self._target.y.min()) - 1, highest)
        for _ in range(TRIES):
            in_front = random.random() < 0.2
            y = random.uniform(behind, height) if in_front else random.uniform(highest, behind)
            actor = casting.low_prop(random) if in_front else casting.prop(random, self._tiles)
            pose = Pose(
                random.uniform(-0.1, 1.1) * width, y, metre_at(self._backdrop, y),
                heading=random.uniform(0, 6.28), swing=0.0,
            )  # fmt: skip
            standing = Standing(actor, pose)
            if not in_front or not _overlap(standing.figure.box(), self._first):
                break
        return standing

    def _occluding(self, random: np.random.Generator) -> Walk | None:
        """Something that the target passes behind, or that passes in front of it; None where that cannot be.

        Of some candidates the one that best hides the target, but not for long, not in the first frame, and not while
        one camera is blind.
        """
        length = self.config.frames
        times = range(0, length, MEETING_STEP)
        boxes = [self._target.at(time).figure.box() for time in times]
        best, lowest = None, float("inf")
        for _ in range(CANDIDATES):
            when = int(length * random.uniform(0.5, 0.92))
            target = self._target.at(when)
            width, height = (side / target.pose.metre for side in target.figure.box()[2:])
            actor = casting.occluder(random, self._tiles, width, height)
            moves = isinstance(actor, Person | Vehicle) and random.random() < 0.6
            pace = float(random.choice([-1, 1])) * random.uniform(0.03, 0.06) if moves else 0.0  # metres a frame
            walk = self._stage.cross(actor, self._target, when, pace)
            x, y, w, h = walk.at(when).figure.box()
            there = [(x + float(walk.x[time] - walk.x[when]), y, w, h) for time in times]
            meetings = [time for time, one, other in zip(times, there, boxes, strict=True) if _overlap(one, other)]
            hidden = sum(_spans(one, other) for one, other in zip(there, boxes, strict=True))
            blind = sum(time in self._dark or time in self._crossover for time in meetings)
            long = max(0, len(meetings) - round(LONGEST_MEETING * length / MEETING_STEP))
            cost = blind + long + (WITHOUT_HIDING if hidden == 0 else 0)
            if cost < lowest and 0 not in meetings:
                best, lowest = walk, cost
        return best


def _overlap(one: Box, other: Box) -> bool:
    (x, y, w, h), (left, top, width, height) = one, other
    return x < left + width and left < x + w and y < top + height and top < y + h


def _spans(one: Box, other: Box) -> bool:
    """One is as wide as the other, as high, and where the other is."""
    (x, y, w, h), (left, top, width, height) = one, other
    return x <= left and x + w >= left + width and y <= top and y + h >= top + 0.9 * height


def _exposure(random: np.random.Generator, noise: float, height: int) -> Exposure:
    """What stays the same in a clip: brightness, white balance, thermal range, sharpness."""
    gain = random.uniform(0.8, 1.25)
    sharpness = height / 480
    return Exposure(
        light=random.uniform(0.75, 1.1),
        tint=tuple(random.normal(1, 0.04, 3).tolist()),
        gain=gain,
        offset=100 * (1 - gain) + random.uniform(-15, 15),
        noise=noise,
        columns=0.25 * noise,
        visible_blur=random.uniform(0, 0.7) * sharpness,
        thermal_blur=random.uniform(0.6, 1.2) * sharpness,
    )


def _stretch(random: np.random.Generator, length: int, start: float, share: float) -> range:
    first = round(length * (start + random.uniform(-0.05, 0.05)))
    return range(first, first + round(length * share))


def _ramp(stretch: range, index: int, frames: int) -> float:
    """1 in a stretch, falling to 0 in some frames around it."""
    if not stretch:
        return 0.0
    away = max(stretch.start - index, index - stretch.stop + 1, 0)
    return max(0.0, 1 - away / frames)
