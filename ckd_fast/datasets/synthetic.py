"""Seeded synthetic RGBT clips with ground truth, hard in the ways that real ones are.

A textured target deforms, turns and changes size on a smooth path over a cluttered background under camera motion,
among distractors that look like it; an occluder crosses it once. In a dark stretch only thermal shows the target; in a
thermal crossover, where target and background are equally warm, only RGB does.

Every shape is a disc whose radius varies with the angle: in the object's own coordinates (u, v), with (r, phi) polar,

    inside where r < 1 + a2 cos(2 phi) + b2 sin(2 phi) + a3 cos(3 phi) + b3 sin(3 phi)

and cos(k phi), sin(k phi) are polynomials of u/r and v/r, so drawing needs no trigonometry per pixel. Drawing works on
whole tensors and any device; the box of the ground truth comes from the same boundary, not from pixels. Frame t of a
clip depends on (seed, t) alone, so frames can be drawn in any order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ckd_fast.errors import InputError
from ckd_fast.types import Box

BOUNDARY_ANGLES = 256
TEXTURE_CELLS = 12
EDGE_PX = 1.2  # width of the soft edge of a shape
MIN_SIDE_PX = 64
MAX_PIXELS = 1 << 25


@dataclass(frozen=True)
class ClipConfig:
    """What a clip looks like.

    Attributes:
        width, height: of both modalities, in pixels.
        frames: length.
        seed: two clips with equal settings are equal.
        distractors: objects that look like the target.
        clutter: static shapes in the background.
        dark: a stretch in which the visible camera sees nothing but noise.
        crossover: a stretch in which the target is as warm as the background.
        occlusion: an occluder crosses the target once.
        camera_motion: amplitude in multiples of the frame's shorter side.
        noise: standard deviation of the sensors' noise, in levels.
    """

    width: int = 640
    height: int = 480
    frames: int = 120
    seed: int = 0
    distractors: int = 4
    clutter: int = 40
    dark: bool = True
    crossover: bool = True
    occlusion: bool = True
    camera_motion: float = 0.04
    noise: float = 4.0

    def __post_init__(self) -> None:
        """Refuse values that draw nothing."""
        if self.width < MIN_SIDE_PX or self.height < MIN_SIDE_PX:
            raise InputError(f"size {self.width}x{self.height}: expected at least {MIN_SIDE_PX}x{MIN_SIDE_PX}")
        if self.width * self.height > MAX_PIXELS:
            raise InputError(f"size {self.width}x{self.height}: expected at most {MAX_PIXELS} pixels")
        if self.frames < 1:
            raise InputError(f"frames={self.frames}: expected at least 1")
        if self.seed < 0 or self.distractors < 0 or self.clutter < 0:
            raise InputError("seed, distractors and clutter: expected numbers from 0")
        if not 0 <= self.camera_motion <= 0.2 or not 0 <= self.noise <= 64:
            raise InputError("expected camera_motion in [0, 0.2] and noise in [0, 64]")


@dataclass(frozen=True)
class SyntheticFrame:
    """One moment of a clip.

    Attributes:
        rgb: [H, W, 3] uint8.
        tir: [H, W] uint8.
        box: the target (x, y, w, h) in pixels, as if nothing were in front of it.
        dark: only thermal shows the target.
        crossover: only RGB shows the target.
        occluded: the occluder covers part of the target.
    """

    rgb: NDArray[np.uint8]
    tir: NDArray[np.uint8]
    box: Box
    dark: bool
    crossover: bool
    occluded: bool


@dataclass(frozen=True)
class Wave:
    """A smooth function of time: a sum of sines."""

    amplitudes: tuple[float, ...]
    frequencies: tuple[float, ...]  # radians per frame
    phases: tuple[float, ...]

    def at(self, time: float) -> float:
        """Its value."""
        terms = zip(self.amplitudes, self.frequencies, self.phases, strict=True)
        return sum(a * math.sin(f * time + p) for a, f, p in terms)


@dataclass(frozen=True)
class Look:
    """Texture of an object: visible colours and warmth.

    Attributes:
        visible: [3, n, n] in 0..255.
        warmth: [1, n, n] in 0..255.
    """

    visible: Tensor
    warmth: Tensor


@dataclass(frozen=True)
class Pose:
    """Where an object is: centre and half-axes in pixels, angle, boundary coefficients a2, b2, a3, b3."""

    x: float
    y: float
    half_width: float
    half_height: float
    angle: float
    shape: tuple[float, float, float, float]

    def boundary(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Points on the outline, in pixels."""
        phi = np.linspace(0, 2 * np.pi, BOUNDARY_ANGLES, endpoint=False)
        a2, b2, a3, b3 = self.shape
        radius = 1 + a2 * np.cos(2 * phi) + b2 * np.sin(2 * phi) + a3 * np.cos(3 * phi) + b3 * np.sin(3 * phi)
        u, v = radius * np.cos(phi) * self.half_width, radius * np.sin(phi) * self.half_height
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return self.x + cos * u - sin * v, self.y + sin * u + cos * v

    def box(self) -> Box:
        """The rectangle around the outline."""
        xs, ys = self.boundary()
        x, y = float(xs.min()), float(ys.min())
        return x, y, float(xs.max()) - x, float(ys.max()) - y


@dataclass(frozen=True)
class Mover:
    """An object over time."""

    look: Look
    x: Wave
    y: Wave
    scale: Wave
    angle: Wave
    wobble: tuple[Wave, Wave, Wave, Wave]
    centre: tuple[float, float]
    half_width: float
    half_height: float

    def pose(self, time: float) -> Pose:
        """Where it is at a time."""
        grown = 1 + self.scale.at(time)
        a2, b2, a3, b3 = (wave.at(time) for wave in self.wobble)
        x, y = self.centre[0] + self.x.at(time), self.centre[1] + self.y.at(time)
        angle = self.angle.at(time)
        return Pose(x, y, self.half_width * grown, self.half_height * grown, angle, (a2, b2, a3, b3))


class SyntheticClip:
    """A clip; `clip[t]` draws frame t, iterating draws all.

    Args:
        config: what it looks like.
        device: where it is drawn; frames come to the host.
    """

    def __init__(self, config: ClipConfig, device: str | torch.device = "cpu") -> None:
        self.config = config
        self._device = torch.device(device)
        random = np.random.default_rng([config.seed, 0])
        side = min(config.width, config.height)
        self._margin = math.ceil(config.camera_motion * side) + 2
        self._camera = (
            _wave(random, config.camera_motion * side, 40, 160),
            _wave(random, config.camera_motion * side, 40, 160),
        )
        self._visible, self._warm = self._background(random)
        target = self._mover(random, _look(random, warmth=random.uniform(170, 225)))
        self._target = target
        # Distractors: the target's texture, partly recoloured, on paths and in shapes of their own.
        self._distractors = [
            self._mover(random, _alike(random, target.look, random.uniform(0.15, 0.6)))
            for _ in range(config.distractors)
        ]
        length = config.frames
        self._dark = _stretch(random, length, 0.30, 0.15) if config.dark else range(0)
        self._crossover = _stretch(random, length, 0.62, 0.15) if config.crossover else range(0)
        self._occluder = _look(random, warmth=random.uniform(60, 120))
        self._occlusion_at = length * random.uniform(0.80, 0.88) if config.occlusion else None
        self._occluder_pace = float(random.choice([-1, 1])) * random.uniform(0.16, 0.3)

    def __len__(self) -> int:
        return self.config.frames

    def __iter__(self) -> Iterator[SyntheticFrame]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> SyntheticFrame:
        """Draw one frame."""
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        config, time = self.config, float(index)
        canvas = self._view(time)  # [4, H, W]: visible and warmth
        for distractor in self._distractors:
            _draw(canvas, distractor.pose(time), distractor.look)
        pose = self._target.pose(time)
        look = self._target.look
        if index in self._crossover:
            # As warm as what is behind it, but for a tenth of its contrast.
            around = _mean_warmth(canvas, pose)
            look = dataclasses.replace(look, warmth=around + 0.1 * (look.warmth - look.warmth.mean()))
        _draw(canvas, pose, look)
        occluded = False
        if self._occlusion_at is not None:
            occluder = self._occluder_pose(pose, time)
            _draw(canvas, occluder, self._occluder)
            gap = abs(occluder.x - pose.x)
            occluded = gap < 0.8 * (occluder.half_width + pose.half_width)
        dark = index in self._dark
        if dark:
            canvas[:3] *= 0.04
        noise = torch.Generator().manual_seed(int(np.random.SeedSequence([config.seed, 1, index]).generate_state(1)[0]))
        canvas += config.noise * torch.randn(canvas.shape, generator=noise).to(self._device)
        pixels = canvas.clamp(0, 255).round().to(torch.uint8).cpu()
        return SyntheticFrame(
            rgb=pixels[:3].permute(1, 2, 0).contiguous().numpy(),
            tir=pixels[3].contiguous().numpy(),
            box=pose.box(),
            dark=dark,
            crossover=index in self._crossover,
            occluded=occluded,
        )

    def boxes(self) -> list[Box]:
        """The ground truth of every frame, without drawing."""
        return [self._target.pose(float(index)).box() for index in range(len(self))]

    def _mover(self, random: np.random.Generator, look: Look) -> Mover:
        """An object of the target's kind on a path that keeps it inside the frame."""
        width, height = self.config.width, self.config.height
        side = min(width, height)
        half_height = side * random.uniform(0.08, 0.13)
        half_width = half_height * random.uniform(0.5, 0.9)
        reach = 1.7 * half_height  # the largest extent over deformation and scale
        x_room, y_room = max(width / 2 - reach, 0), max(height / 2 - reach, 0)
        share: list[float] = random.uniform(0.4, 0.9, 2).tolist()
        x_amplitude, y_amplitude = x_room * share[0], y_room * share[1]
        return Mover(
            look=look,
            x=_wave(random, x_amplitude, 70, 260),
            y=_wave(random, y_amplitude, 70, 260),
            scale=_wave(random, 0.22, 60, 200),
            angle=_wave(random, 0.5, 60, 200),
            wobble=tuple(_wave(random, 0.1, 12, 50) for _ in range(4)),  # type: ignore[arg-type]
            centre=(
                width / 2 + random.uniform(-1, 1) * (x_room - x_amplitude),
                height / 2 + random.uniform(-1, 1) * (y_room - y_amplitude),
            ),
            half_width=half_width,
            half_height=half_height,
        )

    def _occluder_pose(self, target: Pose, time: float) -> Pose:
        """A tall shape that passes over the target's column."""
        assert self._occlusion_at is not None  # noqa: S101
        away = (time - self._occlusion_at) * self._occluder_pace * target.half_width * 2
        tall = self.config.height * 0.4
        return Pose(target.x + away, target.y, target.half_width * 0.9, tall, 0.0, (0.0, 0.0, 0.0, 0.0))

    def _background(self, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Visible [3, Hc, Wc] and warmth [1, Hc, Wc], larger than the frame by the camera's motion."""
        size = self.config.height + 2 * self._margin, self.config.width + 2 * self._margin
        tint = torch.from_numpy(random.uniform(60, 170, 3)).float()[:, None, None]
        octaves = ((4, 55), (14, 40), (60, 25))  # features along the height, strength in levels
        light = sum(_noise(random, 1, cells, size) * strength for cells, strength in octaves)
        colour = sum(_noise(random, 3, cells, size) * strength * 0.4 for cells, strength in octaves)
        visible = tint + light + colour
        shared = visible.mean(0, keepdim=True)
        warm = 70 + 0.25 * (shared - shared.mean()) + _noise(random, 1, 5, size) * 25 + _noise(random, 1, 24, size) * 14
        canvas = torch.cat([visible, warm])
        side = min(self.config.width, self.config.height)
        for _ in range(self.config.clutter):
            look = _look(
                random, warmth=random.choice([random.uniform(40, 110), random.uniform(120, 190)], p=[0.8, 0.2])
            )
            half: list[float] = (side * random.uniform(0.015, 0.07, 2)).tolist()
            pose = Pose(
                random.uniform(0, size[1]),
                random.uniform(0, size[0]),
                half[0],
                half[1],
                random.uniform(0, math.pi),
                tuple(random.uniform(-0.12, 0.12, 4).tolist()),
            )
            _draw(canvas, pose, look)
        canvas = canvas.to(self._device)
        return canvas[:3], canvas[3:]

    def _view(self, time: float) -> Tensor:
        """The background as the camera sees it now [4, H, W], shifted by parts of a pixel."""
        x, y = (wave.at(time) + self._margin for wave in self._camera)
        column, row = math.floor(x), math.floor(y)
        height, width = self.config.height, self.config.width
        window = torch.cat([self._visible, self._warm])[:, row : row + height + 1, column : column + width + 1]
        right, down = x - column, y - row
        across = window[:, :, :-1].lerp(window[:, :, 1:], right)
        return across[:, :-1].lerp(across[:, 1:], down)


def _wave(random: np.random.Generator, amplitude: float, shortest: float, longest: float) -> Wave:
    """Three sines with periods between two bounds in frames; the sum never exceeds `amplitude`."""
    shares = random.dirichlet([2.0, 2.0, 2.0]) * amplitude
    frequencies = 2 * math.pi / random.uniform(shortest, longest, 3)
    phases = random.uniform(0, 2 * math.pi, 3)
    return Wave(*(tuple(float(v) for v in values) for values in (shares, frequencies, phases)))


def _stretch(random: np.random.Generator, length: int, start: float, share: float) -> range:
    first = round(length * (start + random.uniform(-0.05, 0.05)))
    return range(first, first + round(length * share))


def _noise(random: np.random.Generator, channels: int, cells: int, size: tuple[int, int]) -> Tensor:
    """Smooth noise in -1..1 with about `cells` features along the height [channels, H, W]."""
    across = max(2, round(cells * size[1] / size[0]))
    coarse = torch.from_numpy(random.uniform(-1, 1, (1, channels, max(cells, 2), across))).float()
    return functional.interpolate(coarse, size, mode="bicubic", align_corners=True)[0]


def _look(random: np.random.Generator, warmth: float) -> Look:
    """Two colours in a random pattern; warmth about a level."""
    colours = torch.from_numpy(random.uniform(20, 235, (2, 3))).float()
    cells = (TEXTURE_CELLS, TEXTURE_CELLS)
    pattern = (_noise(random, 1, 4, cells) * 1.5).clamp(-1, 1) * 0.5 + 0.5
    visible = colours[0][:, None, None] * pattern + colours[1][:, None, None] * (1 - pattern)
    return Look(visible + _noise(random, 3, 6, cells) * 25, warmth + _noise(random, 1, 5, cells) * 22)


def _alike(random: np.random.Generator, look: Look, difference: float) -> Look:
    """A look between the given one and a new one."""
    other = _look(random, warmth=random.uniform(140, 220))
    return Look(look.visible.lerp(other.visible, difference), look.warmth.lerp(other.warmth, difference))


def _window(canvas: Tensor, pose: Pose) -> tuple[int, int, int, int] | None:
    """Rows and columns of the canvas that an object can touch: top, bottom, left, right."""
    x, y, w, h = pose.box()
    height, width = canvas.shape[-2:]
    left, right = max(0, math.floor(x - 2)), min(width, math.ceil(x + w + 2))
    top, bottom = max(0, math.floor(y - 2)), min(height, math.ceil(y + h + 2))
    return (top, bottom, left, right) if top < bottom and left < right else None


def coverage(pose: Pose, xs: Tensor, ys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How much of each pixel an object covers, in 0..1, and the object's coordinates u, v there.

    Args:
        pose: where the object is.
        xs, ys: pixel centres, of any shape that broadcasts together.
    """
    cos, sin = math.cos(pose.angle), math.sin(pose.angle)
    dx, dy = xs - pose.x, ys - pose.y
    u, v = (cos * dx + sin * dy) / pose.half_width, (cos * dy - sin * dx) / pose.half_height
    radius = (u * u + v * v).sqrt().clamp(min=1e-6)
    c, s = u / radius, v / radius
    a2, b2, a3, b3 = pose.shape
    edge = 1 + a2 * (c * c - s * s) + b2 * (2 * s * c)
    edge = edge + a3 * c * (c * c - 3 * s * s) + b3 * s * (3 * c * c - s * s)
    softness = EDGE_PX / min(pose.half_width, pose.half_height)
    return ((edge - radius) / softness + 0.5).clamp(0, 1), u, v


def _draw(canvas: Tensor, pose: Pose, look: Look) -> None:
    """Paint an object over a canvas [4, H, W], in place."""
    window = _window(canvas, pose)
    if window is None:
        return
    top, bottom, left, right = window
    xs = torch.arange(left, right, device=canvas.device, dtype=torch.float32) + 0.5
    ys = torch.arange(top, bottom, device=canvas.device, dtype=torch.float32) + 0.5
    alpha, u, v = coverage(pose, xs[None, :], ys[:, None])
    texture = torch.cat([look.visible, look.warmth]).to(canvas.device)[None]
    grid = torch.stack([u, v], dim=-1)[None] / 1.5  # the outline stays within 1.4
    painted = functional.grid_sample(texture, grid, mode="bilinear", padding_mode="border", align_corners=True)[0]
    part = canvas[:, top:bottom, left:right]
    part.lerp_(painted, alpha[None])


def _mean_warmth(canvas: Tensor, pose: Pose) -> Tensor:
    """Mean warmth of what an object will cover."""
    window = _window(canvas, pose)
    if window is None:
        return canvas[3].mean()
    top, bottom, left, right = window
    return canvas[3, top:bottom, left:right].mean()
