"""Rendered training pairs: a template and a search view of one synthetic scene, a whole batch at once on any device.

The scenes follow `datasets.synthetic` (the same outlines, textures, darkness, crossover, distractors, occluder), but
nothing is drawn that the two crops do not show: every object is painted straight into the crops of all samples
together. Numbers are drawn on the host, so a seed gives the same scenes on every device.

Coordinates are pixels of the frame, with the target of the template view at (0, 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ckd_fast.datasets.synthetic import BOUNDARY_ANGLES, EDGE_PX, TEXTURE_CELLS

from .config import Sampling, SceneConfig

BACKGROUND_CELLS = 64
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Poses:
    """Where one object is in each of B samples: `Pose` of the generator with arrays [B]; shape is [4, B]."""

    x: Floats
    y: Floats
    half_width: Floats
    half_height: Floats
    angle: Floats
    shape: Floats

    def boxes(self) -> Floats:
        """Rectangles around the outlines [B, 4]: x, y, w, h."""
        phi = np.linspace(0, 2 * np.pi, BOUNDARY_ANGLES, endpoint=False)[:, None]  # [angles, 1]
        a2, b2, a3, b3 = self.shape
        radius = 1 + a2 * np.cos(2 * phi) + b2 * np.sin(2 * phi) + a3 * np.cos(3 * phi) + b3 * np.sin(3 * phi)
        u, v = radius * np.cos(phi) * self.half_width, radius * np.sin(phi) * self.half_height
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        xs, ys = self.x + cos * u - sin * v, self.y + sin * u + cos * v
        left, top = xs.min(0), ys.min(0)
        return np.stack([left, top, xs.max(0) - left, ys.max(0) - top], axis=1)


@dataclass(frozen=True)
class Window:
    """The square that a crop shows in each of B samples: its centre and side [B], in pixels of the frame."""

    x: Floats
    y: Floats
    side: Floats


@dataclass(frozen=True)
class RenderedPairs:
    """B samples.

    Attributes:
        template: rgb and tir [2, B, 3, h, w] uint8.
        search: the same [2, B, 3, H, W].
        target_xywh: the target in units of the search crop [B, 4].
    """

    template: Tensor
    search: Tensor
    target_xywh: Tensor


class Renderer:
    """Renders pairs.

    Args:
        scene: what they contain.
        sampling: jitter of the search window.
        sizes: sides of template and search crop in pixels.
        factors: sides of both windows in multiples of sqrt(w h).
        device: where they are drawn.
    """

    def __init__(
        self,
        scene: SceneConfig,
        sampling: Sampling,
        sizes: tuple[int, int],
        factors: tuple[float, float],
        device: torch.device,
    ) -> None:
        self._scene, self._sampling = scene, sampling
        self._sizes, self._factors, self._device = sizes, factors, device

    def render(self, count: int, seed: tuple[int, ...]) -> RenderedPairs:
        """`count` samples; equal seeds give equal scenes."""
        random = np.random.default_rng(seed)
        scene = _Scene(count, random, self._scene, self._sampling, self._factors)
        background = scene.background(self._device)
        views = []
        for number, size in enumerate(self._sizes):
            canvas = scene.paint(background, number, size)
            rgb, tir = canvas[:, :3], canvas[:, 3:].expand(-1, 3, -1, -1)
            views.append(torch.stack([rgb, tir]).to(torch.uint8))
        return RenderedPairs(views[0], views[1], torch.from_numpy(scene.target_in_search()).float().to(self._device))


class _Scene:
    """The drawn numbers of B scenes, and how they are painted."""

    def __init__(
        self,
        count: int,
        random: np.random.Generator,
        config: SceneConfig,
        sampling: Sampling,
        factors: tuple[float, float],
    ) -> None:
        self.count, self.random, self.config = count, random, config
        # From a walker far away to one that fills half of a frame of 480 lines.
        half_height = np.exp(random.uniform(np.log(12), np.log(90), count))
        half_width = half_height * random.uniform(0.28, 1.1, count)
        angle = random.uniform(-0.5, 0.5, count)
        shape = random.uniform(-0.1, 0.1, (4, count))
        here = Poses(np.zeros(count), np.zeros(count), half_width, half_height, angle, shape)
        grown = np.exp(random.normal(0, 0.2, count))
        reach = np.sqrt(half_width * half_height) * 2
        later = Poses(
            random.normal(0, 1, count) * reach,
            random.normal(0, 0.5, count) * reach,
            half_width * grown * np.exp(random.normal(0, 0.06, count)),
            half_height * grown * np.exp(random.normal(0, 0.06, count)),
            angle + random.normal(0, 0.25, count),
            shape + random.normal(0, 0.05, (4, count)),
        )
        self.target = (here, later)
        self.boxes = (here.boxes(), later.boxes())
        self.windows = (
            self._window(self.boxes[0], factors[0], Sampling(centre_jitter=0, scale_jitter=0)),
            self._window(self.boxes[1], factors[1], sampling),
        )
        # The frame ends somewhere: a third of the samples see beyond it. The target's centre stays inside.
        self.edge = tuple(np.where(random.random(count) < 0.1, random.uniform(0.2, 2.0, count), 1e3) for _ in range(4))
        self.looks = self._target_look()
        # Both views have the same camera: thermal levels become gain * level + offset.
        vary = config.thermal_range
        gain = np.exp(vary * random.uniform(-0.7, 0.25, count)) * np.where(random.random(count) < 0.1 * vary, -1, 1)
        self.thermal = gain, 128 - gain * 128 + vary * random.uniform(-50, 50, count)
        self._key = int(random.integers(2**31))

    def _window(self, boxes: Floats, factor: float, sampling: Sampling) -> Window:
        """The square around each box after jitter."""
        random, count = self.random, self.count
        size = boxes[:, 2:] * np.exp(sampling.scale_jitter * random.normal(size=(count, 2)))
        side = np.sqrt(size.prod(1))
        shift = side[:, None] * sampling.centre_jitter * (random.random((count, 2)) - 0.5)
        centre = boxes[:, :2] + boxes[:, 2:] / 2 + shift
        return Window(centre[:, 0], centre[:, 1], np.ceil(side * factor))

    def target_in_search(self) -> Floats:
        """[B, 4] in units of the search crop."""
        window, boxes = self.windows[1], self.boxes[1]
        corner = np.stack([window.x - window.side / 2, window.y - window.side / 2], axis=1)
        side = window.side[:, None]
        return np.concatenate([(boxes[:, :2] - corner) / side, boxes[:, 2:] / side], axis=1)

    def _target_look(self) -> Tensor:
        """Most targets are warmer than what is around them."""
        warm = self.random.random(self.count) < 0.85
        low, high = np.where(warm, 165, 20), 230
        return _looks(self.random, self.random.uniform(low, high))

    def background(self, device: torch.device) -> Tensor:
        """Texture of the scene around the target [B, 4, cells, cells]."""
        size = (BACKGROUND_CELLS, BACKGROUND_CELLS)
        random = self.random
        tint = torch.from_numpy(random.uniform(40, 190, (self.count, 3, 1, 1))).float()
        octaves = ((4, 55), (14, 40), (48, 25))
        contrast = torch.from_numpy(random.uniform(0.3, 1.2, (self.count, 1, 1, 1))).float()
        light = torch.stack([_noise(random, self.count, 1, cells, size) * strength for cells, strength in octaves]).sum(
            0
        )
        colour = torch.stack(
            [_noise(random, self.count, 3, cells, size) * strength * 0.4 for cells, strength in octaves]
        ).sum(0)
        visible = tint + (light + colour) * contrast
        shared = visible.mean(1, keepdim=True)
        level = torch.from_numpy(random.uniform(40, 110, (self.count, 1, 1, 1))).float()
        warm = level + 0.25 * (shared - shared.mean((2, 3), keepdim=True))
        warm = (
            warm
            + (_noise(random, self.count, 1, 5, size) * 25 + _noise(random, self.count, 1, 24, size) * 14) * contrast
        )
        return torch.cat([visible, warm], dim=1).to(device)

    def paint(self, background: Tensor, view: int, size: int) -> Tensor:
        """One view of every scene, levels 0..255 [B, 4, size, size]."""
        device, window = background.device, self.windows[view]
        random = np.random.default_rng(self.random.integers(2**63))
        step = torch.arange(size, device=device, dtype=torch.float32) + 0.5
        side, left, top = (
            torch.from_numpy(values).float().to(device)[:, None, None]
            for values in (window.side, window.x - window.side / 2, window.y - window.side / 2)
        )
        xs = left + step[None, None, :] * side / size  # [B, 1, size]
        ys = top + step[None, :, None] * side / size  # [B, size, 1]
        reach = torch.from_numpy(self.windows[1].side).float().to(device)[:, None, None]
        across, down = torch.broadcast_tensors(xs / reach, ys / reach)
        grid = torch.stack([across, down], dim=-1)
        canvas = functional.grid_sample(background, grid, padding_mode="reflection", align_corners=True)
        pixel = torch.from_numpy(window.side).float().to(device)[:, None, None] / size
        self._clutter(canvas, xs, ys, pixel)
        target = self.target[view]
        for number in range(self.config.distractors):
            self._distractor(number, view, canvas, xs, ys, pixel)
        look = self.looks.to(device)
        crossover = self._happens(self.config.crossover, 101) if view == 1 else np.zeros(self.count, bool)
        # In both views, and never together with a crossover: the target would be nowhere.
        camouflage = self._happens(self.config.camouflage, 105) & ~self._happens(self.config.crossover, 101)
        if crossover.any() or camouflage.any():
            # As warm, or of the colour, as what is behind it, but for a tenth of its contrast.
            alpha = coverages(target, xs, ys, pixel)[0][:, None]  # [B, 1, H, W]
            around = (canvas * alpha).sum((2, 3), keepdim=True) / alpha.sum((2, 3), keepdim=True).clamp(min=1e-3)
            hidden = around + 0.1 * (look - look.mean((2, 3), keepdim=True))  # [B, 4, cells, cells]
            unseen = np.stack([*[camouflage] * 3, crossover], axis=1)  # [B, 4]
            look = torch.where(torch.from_numpy(unseen).to(device)[:, :, None, None], hidden, look)
        paint_textured(canvas, target, look, xs, ys, pixel)
        if view == 1:
            self._occluder(canvas, xs, ys, pixel)
        dark = self._happens(self.config.dark, 102) & ~crossover
        # A dark template is rarer: a user starts on what can be seen.
        dark &= self._happens(0.3, 103) if view == 0 else True
        dimmed = np.where(dark, random.uniform(0.02, 0.3, self.count), 1.0)
        canvas[:, :3] *= torch.from_numpy(dimmed).float().to(device)[:, None, None, None]
        gain, offset = (torch.from_numpy(v).float().to(device)[:, None, None] for v in self.thermal)
        canvas[:, 3] = canvas[:, 3] * gain + offset
        strength = torch.from_numpy(random.uniform(0.2, 1.5, self.count)).float()[:, None, None, None]
        noise = torch.from_numpy(random.standard_normal((self.count, 4, size, size), dtype=np.float32))
        canvas += (noise * strength * self.config.noise).to(device)
        # Outside of the frame a crop is black.
        start = self.boxes[view]
        cx, cy = start[:, 0] + start[:, 2] / 2, start[:, 1] + start[:, 3] / 2
        bounds = (
            cx - self.edge[0] * start[:, 2], cx + self.edge[1] * start[:, 2],
            cy - self.edge[2] * start[:, 3], cy + self.edge[3] * start[:, 3],
        )  # fmt: skip
        west, east, north, south = (torch.from_numpy(b).float().to(device)[:, None, None] for b in bounds)
        inside = (xs > west) & (xs < east) & (ys > north) & (ys < south)
        return (canvas * inside[:, None]).clamp(0, 255).round()

    def _happens(self, probability: float, salt: int) -> NDArray[np.bool_]:
        """The same answer whenever it is asked: template and search agree on what a scene is."""
        return np.random.default_rng([self._key, salt]).random(self.count) < probability

    def _clutter(self, canvas: Tensor, xs: Tensor, ys: Tensor, pixel: Tensor) -> None:
        """Static shapes in plain colours that shade from one side to the other; the same in both views."""
        random = np.random.default_rng([self._key, 1])
        device, reach = canvas.device, self.windows[1].side
        for _ in range(self.config.clutter):
            scale = np.sqrt(self.target[0].half_width * self.target[0].half_height)
            half = scale * np.exp(random.uniform(np.log(0.15), np.log(1.2), (2, self.count)))
            pose = Poses(
                random.uniform(-0.8, 0.8, self.count) * reach,
                random.uniform(-0.8, 0.8, self.count) * reach,
                half[0],
                half[1],
                random.uniform(0, math.pi, self.count),
                random.uniform(-0.12, 0.12, (4, self.count)),
            )
            hot = random.random(self.count) < 0.2
            warm = np.where(hot, random.uniform(120, 200, self.count), random.uniform(30, 110, self.count))
            colour = np.concatenate([random.uniform(20, 235, (self.count, 3)), warm[:, None]], axis=1)
            slope = np.concatenate([random.normal(0, 30, (self.count, 3)), random.normal(0, 10, (self.count, 1))], 1)
            alpha, u, _ = coverages(pose, xs, ys, pixel)
            base, tilt = (torch.from_numpy(v).float().to(device)[:, :, None, None] for v in (colour, slope))
            canvas.lerp_(base + tilt * u[:, None], alpha[:, None])

    def _distractor(self, number: int, view: int, canvas: Tensor, xs: Tensor, ys: Tensor, pixel: Tensor) -> None:
        """Something that looks like the target, elsewhere in each view."""
        random = np.random.default_rng([self._key, 10 + number])
        target, count = self.target[view], self.count
        there = random.random(count) < 0.7
        difference = torch.from_numpy(random.uniform(0.15, 0.7, count)).float()[:, None, None, None]
        look = self.looks.lerp(_looks(random, random.uniform(120, 225, count)), difference)
        reach = np.sqrt(target.half_width * target.half_height)
        for _ in range(view + 1):  # elsewhere in the search view
            bearing, distance = random.uniform(0, 2 * math.pi, count), random.uniform(0.8, 4.0, count)
        size = np.exp(random.normal(0, 0.15, (2, count)))
        pose = Poses(
            target.x + np.where(there, np.cos(bearing) * distance * reach, 1e6),
            target.y + np.sin(bearing) * distance * reach,
            target.half_width * size[0],
            target.half_height * size[1],
            random.uniform(-0.5, 0.5, count),
            random.uniform(-0.1, 0.1, (4, count)),
        )
        paint_textured(canvas, pose, look.to(canvas.device), xs, ys, pixel)

    def _occluder(self, canvas: Tensor, xs: Tensor, ys: Tensor, pixel: Tensor) -> None:
        """A tall plain shape over a part of the target."""
        random = np.random.default_rng([self._key, 2])
        target, count = self.target[1], self.count
        there = self._happens(self.config.occlusion, 104)
        away = random.uniform(0.4, 1.8, count) * random.choice([-1, 1], count) * target.half_width
        wide, tall = target.half_width * random.uniform(0.4, 1.0, count), target.half_height * 3
        pose = Poses(target.x + np.where(there, away, 1e6), target.y, wide, tall, np.zeros(count), np.zeros((4, count)))
        colour = np.concatenate([random.uniform(20, 235, (count, 3)), random.uniform(40, 140, (count, 1))], axis=1)
        alpha, _, _ = coverages(pose, xs, ys, pixel)
        base = torch.from_numpy(colour).float().to(canvas.device)[:, :, None, None]
        canvas.lerp_(base.expand_as(canvas), alpha[:, None])


def _looks(random: np.random.Generator, warmth: Floats) -> Tensor:
    """Two colours in a random pattern, and warmth about a level [B] -> [B, 4, cells, cells]."""
    count, cells = len(warmth), (TEXTURE_CELLS, TEXTURE_CELLS)
    colours = torch.from_numpy(random.uniform(10, 245, (2, count, 3, 1, 1))).float()
    pattern = (_noise(random, count, 1, 4, cells) * 1.5).clamp(-1, 1) * 0.5 + 0.5
    visible = colours[0] * pattern + colours[1] * (1 - pattern) + _noise(random, count, 3, 6, cells) * 25
    warm = torch.from_numpy(warmth).float()[:, None, None, None] + _noise(random, count, 1, 5, cells) * 22
    return torch.cat([visible, warm], dim=1)


def _noise(random: np.random.Generator, count: int, channels: int, cells: int, size: tuple[int, int]) -> Tensor:
    """Smooth noise in -1..1 [B, channels, H, W]."""
    coarse = torch.from_numpy(random.uniform(-1, 1, (count, channels, cells, cells))).float()
    return functional.interpolate(coarse, size, mode="bicubic", align_corners=True)


def coverages(poses: Poses, xs: Tensor, ys: Tensor, pixel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`datasets.synthetic.coverage` for a batch: how much of each pixel is covered, and the object's u and v there.

    Args:
        poses: one object per sample.
        xs, ys: pixel centres [B, 1, W] and [B, H, 1].
        pixel: side of a crop's pixel in the frame [B, 1, 1]; edges are at least that soft.
    """
    values = (poses.x, poses.y, poses.half_width, poses.half_height, np.cos(poses.angle), np.sin(poses.angle))
    x, y, half_width, half_height, cos, sin, a2, b2, a3, b3 = (
        torch.from_numpy(v).float().to(xs.device)[:, None, None] for v in (*values, *poses.shape)
    )
    # Whole canvases are the cost of this renderer: what depends on a row or a column alone is computed as such, and the
    # harmonics of an angle come from one another.
    dx, dy = xs - x, ys - y
    u = dx * (cos / half_width) + dy * (sin / half_width)
    v = dy * (cos / half_height) - dx * (sin / half_height)
    radius = torch.hypot(u, v).clamp_(min=1e-6)
    c, s = u / radius, v / radius
    cos2 = (c * c).mul_(2).sub_(1)
    edge = (c * s).mul_(2 * b2).addcmul_(cos2, a2)
    edge.addcmul_(c * a3, 2 * cos2 - 1).addcmul_(s * b3, 2 * cos2 + 1)  # cos 3phi, sin 3phi
    softness = pixel.clamp(min=EDGE_PX) / torch.minimum(half_width, half_height)
    alpha = edge.sub_(radius).mul_(1 / softness).add_(0.5 + 1 / softness).clamp_(0, 1)
    return alpha, u, v


def paint_textured(canvas: Tensor, poses: Poses, looks: Tensor, xs: Tensor, ys: Tensor, pixel: Tensor) -> None:
    """Paint one textured object per sample over a canvas [B, 4, H, W], in place."""
    alpha, u, v = coverages(poses, xs, ys, pixel)
    grid = torch.stack([u, v], dim=-1) / 1.5  # the outline stays within 1.4
    painted = functional.grid_sample(looks, grid, mode="bilinear", padding_mode="border", align_corners=True)
    canvas.lerp_(painted, alpha[:, None])
