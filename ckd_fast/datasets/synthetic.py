"""Seeded synthetic RGBT clips with ground truth, hard in the ways that real ones are.

A textured target deforms, turns and changes size on a smooth path over a cluttered background. The camera moves, things
that look like the target are around, and an occluder crosses it once. In a dark stretch only thermal shows the target;
in a thermal crossover, where target and background are equally warm, only RGB does.

This file says what is in a clip and how it moves; `scenes` says what it looks like. Frame t depends on (seed, t) alone,
so frames can be drawn in any order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ckd_fast.errors import InputError
from ckd_fast.types import Box

from . import scenes
from .scenes import Moment, Outline, Thing, View

MIN_SIDE_PX = 64
MAX_PIXELS = 1 << 25
DARK_LIGHT = 0.04  # factor of the visible levels in the dark stretch
# Random streams of a clip, drawn from (seed, purpose, ...).
CONTENT, SENSOR_NOISE = 0, 1
WHOLE_CANVAS = View(np.zeros(1), np.zeros(1), np.ones(1))


@dataclass(frozen=True)
class ClipConfig:
    # of both modalities, in pixels
    width: int = 640
    height: int = 480
    frames: int = 120  # length
    seed: int = 0  # two clips with equal settings are equal
    distractors: int = 4  # objects that look like the target
    clutter: int = 40  # static shapes in the background
    dark: bool = True  # a stretch in which the visible camera sees nothing but noise
    crossover: bool = True  # a stretch in which the target is as warm as the background
    occlusion: bool = True  # an occluder crosses the target once
    camera_motion: float = 0.04  # amplitude in multiples of the frame's shorter side
    noise: float = 4.0  # standard deviation of the sensors' noise, in levels

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
    occluded: bool  # the occluder covers part of the target


@dataclass(frozen=True)
class Wave:
    """A smooth function of time: a sum of sines."""

    amplitudes: tuple[float, ...]
    frequencies: tuple[float, ...]  # radians per frame
    phases: tuple[float, ...]

    def at(self, time: float) -> float:
        terms = zip(self.amplitudes, self.frequencies, self.phases, strict=True)
        return sum(a * math.sin(f * time + p) for a, f, p in terms)


@dataclass(frozen=True)
class Mover:
    """An object over time; `centre` is the middle of its path."""

    texture: Tensor
    x: Wave
    y: Wave
    scale: Wave
    angle: Wave
    wobble: tuple[Wave, ...]  # of a2, b2, a3, b3
    centre: tuple[float, float]
    half_width: float
    half_height: float

    def outline(self, time: float) -> Outline:
        x, y = self.centre[0] + self.x.at(time), self.centre[1] + self.y.at(time)
        grown, wobble = 1 + self.scale.at(time), [wave.at(time) for wave in self.wobble]
        return Outline.single(x, y, self.half_width * grown, self.half_height * grown, self.angle.at(time), wobble)


class SyntheticClip:
    """A clip; `clip[t]` draws frame t on the device and brings it to the host, iterating draws all."""

    def __init__(self, config: ClipConfig, device: str | torch.device = "cpu") -> None:
        self.config = config
        random = np.random.default_rng([config.seed, CONTENT])
        side = min(config.width, config.height)
        self._margin = math.ceil(config.camera_motion * side) + 2
        self._camera = [_wave(random, config.camera_motion * side, 40, 160) for _ in range(2)]
        self._ground = self._background(random).to(device)
        self._target = self._mover(random, scenes.texture(random, random.uniform(170, 225, 1)))
        self._distractors = [
            self._mover(random, scenes.distractor_texture(random, self._target.texture))
            for _ in range(config.distractors)
        ]
        length = config.frames
        self._dark = _stretch(random, length, 0.30, 0.15) if config.dark else range(0)
        self._crossover = _stretch(random, length, 0.62, 0.15) if config.crossover else range(0)
        self._occluder = scenes.occluder_texture(random, 1)
        self._occlusion_at = length * random.uniform(0.80, 0.88)
        self._occluder_pace = float(random.choice([-1, 1])) * random.uniform(0.16, 0.3)

    def __len__(self) -> int:
        return self.config.frames

    def __iter__(self) -> Iterator[SyntheticFrame]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> SyntheticFrame:
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        time, dark, crossover = float(index), index in self._dark, index in self._crossover
        target = self._target.outline(time)
        occluder = self._occluder_outline(target, time)
        gap = abs(occluder.x[0] - target.x[0])
        occluded = self.config.occlusion and bool(gap < 0.8 * (occluder.half_width[0] + target.half_width[0]))
        noise_seed = np.random.SeedSequence([self.config.seed, SENSOR_NOISE, index]).generate_state(1)[0]
        moment = Moment(
            view=WHOLE_CANVAS,
            behind=[Thing(distractor.outline(time), distractor.texture) for distractor in self._distractors],
            target=Thing(target, self._target.texture),
            hidden=np.array([[False, False, False, crossover]]),
            in_front=[Thing(occluder, self._occluder)] if self.config.occlusion else [],
            light=np.array([DARK_LIGHT if dark else 1.0]),
            thermal=np.array([[1.0], [0.0]]),
            noise=np.array([self.config.noise]),
            noise_seed=int(noise_seed),
        )
        (picture,) = scenes.render(self._ground_at(time), moment).cpu()
        rgb, tir = picture[:3].permute(1, 2, 0).contiguous().numpy(), picture[3].contiguous().numpy()
        return SyntheticFrame(rgb, tir, _box(target), dark, crossover, occluded)

    def boxes(self) -> list[Box]:
        """The ground truth of every frame, without drawing."""
        return [_box(self._target.outline(float(index))) for index in range(len(self))]

    def _mover(self, random: np.random.Generator, look: Tensor) -> Mover:
        """An object of the target's kind on a path that keeps it inside the frame."""
        width, height = self.config.width, self.config.height
        half_height = min(width, height) * random.uniform(0.08, 0.13)
        half_width = half_height * random.uniform(0.5, 0.9)
        reach = 1.7 * half_height  # the largest extent over deformation and scale
        x_room, y_room = max(width / 2 - reach, 0), max(height / 2 - reach, 0)
        x_share, y_share = random.uniform(0.4, 0.9, 2).tolist()
        x_amplitude, y_amplitude = x_room * x_share, y_room * y_share
        return Mover(
            texture=look,
            x=_wave(random, x_amplitude, 70, 260),
            y=_wave(random, y_amplitude, 70, 260),
            scale=_wave(random, 0.22, 60, 200),
            angle=_wave(random, 0.5, 60, 200),
            wobble=tuple(_wave(random, 0.1, 12, 50) for _ in range(4)),
            centre=(
                width / 2 + random.uniform(-1, 1) * (x_room - x_amplitude),
                height / 2 + random.uniform(-1, 1) * (y_room - y_amplitude),
            ),
            half_width=half_width,
            half_height=half_height,
        )

    def _occluder_outline(self, target: Outline, time: float) -> Outline:
        """A tall shape that passes over the target's column."""
        (x,), (y,), (half_width,) = target.x, target.y, target.half_width
        away = (time - self._occlusion_at) * self._occluder_pace * half_width * 2
        return Outline.single(x + away, y, half_width * 0.9, self.config.height * 0.4, 0.0, (0.0, 0.0, 0.0, 0.0))

    def _background(self, random: np.random.Generator) -> Tensor:
        """Ground and clutter [1, 4, H, W], larger than the frame by the camera's motion."""
        height, width = self.config.height + 2 * self._margin, self.config.width + 2 * self._margin
        canvas = scenes.ground(random, random.uniform(60, 170, (1, 3)), (height, width))
        side = min(self.config.width, self.config.height)
        for _ in range(self.config.clutter):
            look = scenes.clutter_texture(random, 1)
            half_width, half_height = side * random.uniform(0.015, 0.07, 2)
            x, y, angle = random.uniform(0, width), random.uniform(0, height), random.uniform(0, math.pi)
            outline = Outline.single(x, y, half_width, half_height, angle, random.uniform(-0.12, 0.12, 4))
            scenes.paint(canvas, WHOLE_CANVAS, Thing(outline, look))
        return canvas

    def _ground_at(self, time: float) -> Tensor:
        """The background as the camera sees it now [1, 4, H, W], shifted by parts of a pixel."""
        x, y = (wave.at(time) + self._margin for wave in self._camera)
        column, row = math.floor(x), math.floor(y)
        window = self._ground[:, :, row : row + self.config.height + 1, column : column + self.config.width + 1]
        across = window[..., :-1].lerp(window[..., 1:], x - column)
        return across[:, :, :-1].lerp(across[:, :, 1:], y - row)


def _box(outline: Outline) -> Box:
    x, y, w, h = outline.boxes()[0].tolist()
    return x, y, w, h


def _wave(random: np.random.Generator, amplitude: float, shortest: float, longest: float) -> Wave:
    """Three sines with periods between two bounds in frames; the sum never exceeds `amplitude`."""
    shares = random.dirichlet([2.0, 2.0, 2.0]) * amplitude
    frequencies = 2 * math.pi / random.uniform(shortest, longest, 3)
    phases = random.uniform(0, 2 * math.pi, 3)
    return Wave(*(tuple(float(v) for v in values) for values in (shares, frequencies, phases)))


def _stretch(random: np.random.Generator, length: int, start: float, share: float) -> range:
    first = round(length * (start + random.uniform(-0.05, 0.05)))
    return range(first, first + round(length * share))
