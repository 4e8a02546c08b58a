"""Rendered training pairs: a template and a search view of one synthetic scene, a whole batch at once on any device.

`datasets.scenes` says what a scene looks like. This file says what is in a pair: every thing is painted straight into
the crops, and nothing is drawn that they do not show. Numbers are drawn on the host, so a seed gives the same scenes on
every device.

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

from ckd_fast.datasets.scenes import (
    Floats,
    Moment,
    Outline,
    Thing,
    View,
    clutter_texture,
    distractor_texture,
    ground,
    occluder_texture,
    render,
    texture,
)

from .config import Sampling, SceneConfig

LAND_CELLS = 64
FAR_AWAY = 1e6  # where things are that a scene does not have
STILL = Sampling(centre_jitter=0, scale_jitter=0)
DARK_TEMPLATES = 0.3  # of the dark scenes: a user starts on what can be seen


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


@dataclass(frozen=True)
class _Scenes:
    """B scenes in two views, the template's and the search's, before anything is painted.

    Attributes:
        views: what each crop shows.
        moments: what is there.
        reach: side of the search window [B].
        edges: where the frame ends, see `_frame_edges`.
        land: ground around the target [B, 4, cells, cells].
    """

    views: tuple[View, View]
    moments: tuple[Moment, Moment]
    reach: Floats
    edges: Floats
    land: Tensor


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
        scenes = self._draw(count, seed)
        boxes = [moment.target.outline.boxes() for moment in scenes.moments]
        crops = []
        for view, moment, size, box in zip(scenes.views, scenes.moments, self._sizes, boxes, strict=True):
            xs, ys = view.pixel_centres((0, size), (0, size), self._device)
            picture = render(_seen_land(scenes.land, xs, ys, scenes.reach), view, moment)
            picture *= _inside_frame(box, scenes.edges, xs, ys)
            crops.append(torch.stack([picture[:, :3], picture[:, 3:].expand(-1, 3, -1, -1)]))
        template, search = crops
        corner = np.stack([scenes.views[1].left, scenes.views[1].top, np.zeros(count), np.zeros(count)], axis=1)
        target_xywh = torch.from_numpy((boxes[1] - corner) / scenes.reach[:, None]).float().to(self._device)
        return RenderedPairs(template, search, target_xywh)

    def _draw(self, count: int, seed: tuple[int, ...]) -> _Scenes:
        """All random numbers of `count` scenes."""
        # A stream for each part of the scene, so that a setting of one part changes nothing in the others.
        random, events, for_clutter, for_distractors, for_occluder, sensors = (
            np.random.default_rng(stream) for stream in np.random.SeedSequence(seed).spawn(6)
        )
        scene = self._scene
        targets = _targets(random, count)
        template_view = _crop(random, targets[0], self._factors[0], self._sizes[0], STILL)
        search_view = _crop(random, targets[1], self._factors[1], self._sizes[1], self._sampling)
        reach = search_view.pixel * self._sizes[1]
        warm = random.random(count) < 0.85  # most targets are warmer than what is around them
        look = texture(random, random.uniform(np.where(warm, 165, 20), 230))

        def happens(probability: float) -> NDArray[np.bool_]:
            return events.random(count) < probability

        nowhere = np.zeros(count, bool)
        crossover, dark, occluded = happens(scene.crossover), happens(scene.dark), happens(scene.occlusion)
        # With a crossover too, the target would be nowhere to be seen.
        camouflage, dark = happens(scene.camouflage) & ~crossover, dark & ~crossover
        clutter = [_clutter(for_clutter, targets[0], reach) for _ in range(scene.clutter)]
        distractors = [_distractor(for_distractors, targets, look) for _ in range(scene.distractors)]
        gain, offset = _thermal_camera(sensors, count, scene.thermal_range)

        def moment(view: int, *, dark: NDArray[np.bool_], as_warm: NDArray[np.bool_], in_front: list[Thing]) -> Moment:
            return Moment(
                behind=[*clutter, *(distractor[view] for distractor in distractors)],
                target=Thing(targets[view], look),
                hidden=np.stack([camouflage, camouflage, camouflage, as_warm], axis=1),
                in_front=in_front,
                light=np.where(dark, sensors.uniform(0.02, 0.3, count), 1.0),
                thermal_gain=gain,
                thermal_offset=offset,
                noise=sensors.uniform(0.2, 1.5, count) * scene.noise,
                noise_seed=int(sensors.integers(2**63)),
            )

        template = moment(0, dark=dark & happens(DARK_TEMPLATES), as_warm=nowhere, in_front=[])
        occluder = _occluder(for_occluder, targets[1], occluded)
        search = moment(1, dark=dark, as_warm=crossover, in_front=[occluder])
        return _Scenes(
            views=(template_view, search_view),
            moments=(template, search),
            reach=reach,
            edges=_frame_edges(random, count),
            land=_land(random, count).to(self._device),
        )


def _land(random: np.random.Generator, count: int) -> Tensor:
    """The ground around the target [B, 4, cells, cells]."""
    tint, size = random.uniform(40, 190, (count, 3)), (LAND_CELLS, LAND_CELLS)
    contrast, warmth = random.uniform(0.3, 1.2, count), random.uniform(40, 110, count)
    return ground(random, tint, size, contrast, warmth)


def _clutter(random: np.random.Generator, target: Outline, reach: Floats) -> Thing:
    """A static thing somewhere around; it stands in the same place in both views."""
    count = len(reach)
    scale = np.sqrt(target.half_width * target.half_height)
    half_width, half_height = scale * np.exp(random.uniform(np.log(0.15), np.log(1.2), (2, count)))
    x, y = random.uniform(-0.8, 0.8, (2, count)) * reach
    outline = Outline(
        x, y, half_width, half_height, random.uniform(0, math.pi, count), random.uniform(-0.12, 0.12, (4, count))
    )
    return Thing(outline, clutter_texture(random, count))


def _distractor(random: np.random.Generator, targets: list[Outline], look: Tensor) -> list[Thing]:
    """Something that looks like the target, elsewhere in each view."""
    count = len(look)
    there = random.random(count) < 0.7
    own = distractor_texture(random, look)
    wider, taller = np.exp(random.normal(0, 0.15, (2, count)))
    angle, shape = random.uniform(-0.5, 0.5, count), random.uniform(-0.1, 0.1, (4, count))
    things = []
    for target in targets:
        bearing, distance = random.uniform(0, 2 * math.pi, count), random.uniform(0.8, 4.0, count)
        distance *= np.sqrt(target.half_width * target.half_height)
        outline = Outline(
            np.where(there, target.x + np.cos(bearing) * distance, FAR_AWAY),
            target.y + np.sin(bearing) * distance,
            target.half_width * wider,
            target.half_height * taller,
            angle,
            shape,
        )
        things.append(Thing(outline, own))
    return things


def _occluder(random: np.random.Generator, target: Outline, there: NDArray[np.bool_]) -> Thing:
    """A tall shape over a part of the target."""
    count = len(there)
    away = random.uniform(0.4, 1.8, count) * random.choice([-1, 1], count) * target.half_width
    half_width, half_height = target.half_width * random.uniform(0.4, 1.0, count), target.half_height * 3
    x = np.where(there, target.x + away, FAR_AWAY)
    outline = Outline(x, target.y, half_width, half_height, np.zeros(count), np.zeros((4, count)))
    return Thing(outline, occluder_texture(random, count))


def _thermal_camera(random: np.random.Generator, count: int, vary: float) -> tuple[Floats, Floats]:
    """Gain and offset of each scene's thermal camera, which is the same in both views."""
    black_hot = random.random(count) < 0.1 * vary
    gain = np.exp(vary * random.uniform(-0.7, 0.25, count)) * np.where(black_hot, -1, 1)
    return gain, 128 - gain * 128 + vary * random.uniform(-50, 50, count)


def _targets(random: np.random.Generator, count: int) -> list[Outline]:
    """The target in the template view, and later in the search view."""
    # From a walker far away to one that fills half of a frame of 480 lines.
    half_height = np.exp(random.uniform(np.log(12), np.log(90), count))
    half_width = half_height * random.uniform(0.28, 1.1, count)
    angle, shape = random.uniform(-0.5, 0.5, count), random.uniform(-0.1, 0.1, (4, count))
    reach = np.sqrt(half_width * half_height) * 2
    grown = np.exp(random.normal(0, 0.2, count))
    later = Outline(
        random.normal(0, 1, count) * reach,
        random.normal(0, 0.5, count) * reach,
        half_width * grown * np.exp(random.normal(0, 0.06, count)),
        half_height * grown * np.exp(random.normal(0, 0.06, count)),
        angle + random.normal(0, 0.25, count),
        shape + random.normal(0, 0.05, (4, count)),
    )
    return [Outline(np.zeros(count), np.zeros(count), half_width, half_height, angle, shape), later]


def _crop(random: np.random.Generator, target: Outline, factor: float, size: int, sampling: Sampling) -> View:
    """The square around each target's box after jitter, as a crop of `size` pixels a side shows it."""
    boxes, count = target.boxes(), len(target.x)
    jittered = boxes[:, 2:] * np.exp(sampling.scale_jitter * random.normal(size=(count, 2)))
    scale = np.sqrt(jittered.prod(1))
    shift = scale[:, None] * sampling.centre_jitter * (random.random((count, 2)) - 0.5)
    side = np.ceil(scale * factor)
    left, top = (boxes[:, :2] + boxes[:, 2:] / 2 + shift - side[:, None] / 2).T
    return View(left, top, side / size)


def _frame_edges(random: np.random.Generator, count: int) -> Floats:
    """How far the frame reaches from the target's centre, in target sides: west, east, north, south [4, B].

    A third of the samples see beyond it.
    """
    return np.stack([np.where(random.random(count) < 0.1, random.uniform(0.2, 2.0, count), FAR_AWAY) for _ in range(4)])


def _inside_frame(boxes: Floats, edges: Floats, xs: Tensor, ys: Tensor) -> Tensor:
    """Which pixels of a crop lie inside the frame [B, 1, H, W]; outside a crop is black."""
    x, y, w, h = boxes.T
    bounds = np.stack(
        [x + w / 2 - edges[0] * w, x + w / 2 + edges[1] * w, y + h / 2 - edges[2] * h, y + h / 2 + edges[3] * h]
    )
    west, east, north, south = torch.from_numpy(bounds).to(xs)[:, :, None, None]
    inside: Tensor = (xs > west) & (xs < east) & (ys > north) & (ys < south)
    return inside[:, None]


def _seen_land(land: Tensor, xs: Tensor, ys: Tensor, reach: Floats) -> Tensor:
    """The land [B, 4, n, n], which is twice as wide as the search window, at the pixels of a crop [B, 4, H, W]."""
    side = torch.from_numpy(reach).to(xs)[:, None, None]
    grid = torch.stack(torch.broadcast_tensors(xs / side, ys / side), dim=-1)
    seen: Tensor = functional.grid_sample(land, grid, padding_mode="reflection", align_corners=True)
    return seen
