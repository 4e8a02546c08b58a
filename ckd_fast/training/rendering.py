"""Rendered training pairs: a template and a search view of one synthetic scene, a whole batch at once on any device.

`datasets.scenes` says what a scene looks like. This file says what is in a pair: every thing is painted straight into
the crops, and nothing is drawn that they do not show. Numbers are drawn on the host, so a seed gives the same scenes on
every device.

Coordinates are pixels of the frame, with the target of the template view at (0, 0).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ckd_fast.datasets import scenes
from ckd_fast.datasets.scenes import Floats, Moment, Outline, Thing, View
from ckd_fast.reference.config import ModelConfig

from .config import Sampling, SceneConfig
from .samples import Crops

LAND_CELLS = 64
FAR_AWAY = 1e6  # where things are that a scene does not have
DARK_TEMPLATES = 0.3  # of the dark scenes: a user starts on what can be seen


class Renderer:
    """Renders pairs.

    Args:
        scene: what they contain.
        sampling: jitter of the search window.
        model: size of both crops, and sides of their windows in multiples of sqrt(w h).
        device: where they are drawn.
    """

    def __init__(self, scene: SceneConfig, sampling: Sampling, model: ModelConfig, device: torch.device) -> None:
        self._scene, self._sampling, self._device = scene, sampling, device
        self._sizes = (model.template_size, model.search_size)
        self._factors = (model.template_factor, model.search_factor)

    def render(self, count: int, seed: tuple[int, ...]) -> Crops:
        """`count` samples; equal seeds give equal scenes."""
        moments, land = self._draw(count, seed)
        view, box = moments[1].view, moments[1].target.outline.boxes()
        reach = view.pixel * self._sizes[1]  # side of the search window
        pictures = []
        for moment, size in zip(moments, self._sizes, strict=True):
            picture = scenes.render(_seen_land(land, moment.view, size, reach), moment)
            pictures.append(torch.stack([picture[:, :3], picture[:, 3:].expand(-1, 3, -1, -1)]))
        corner = np.stack([view.left, view.top, np.zeros(count), np.zeros(count)], axis=1)
        target_xywh = (box - corner) / reach[:, None]
        return Crops(pictures[0], pictures[1], torch.from_numpy(target_xywh).float().to(self._device))

    def _draw(self, count: int, seed: tuple[int, ...]) -> tuple[list[Moment], Tensor]:
        """All random numbers of `count` scenes: what the template and the search view show, and the land."""
        # A stream for each part of the scene, so that a setting of one part changes nothing in the others.
        random, events, for_clutter, for_distractors, for_occluder, sensors = (
            np.random.default_rng(stream) for stream in np.random.SeedSequence(seed).spawn(6)
        )
        scene = self._scene
        targets = _targets(random, count)
        jitters = (Sampling(centre_jitter=0, scale_jitter=0), self._sampling)
        views = [_crop(random, *parts) for parts in zip(targets, self._factors, self._sizes, jitters, strict=True)]
        reach = views[1].pixel * self._sizes[1]
        warm = random.random(count) < 0.85  # most targets are warmer than what is around them
        look = scenes.texture(random, random.uniform(np.where(warm, 165, 20), 230))

        def happens(probability: float) -> NDArray[np.bool_]:
            return events.random(count) < probability

        crossover, dark, occluded = happens(scene.crossover), happens(scene.dark), happens(scene.occlusion)
        # With a crossover too, the target would be nowhere to be seen.
        camouflage, dark = happens(scene.camouflage) & ~crossover, dark & ~crossover
        clutter = [_clutter(for_clutter, targets[0], reach) for _ in range(scene.clutter)]
        distractors = [_distractor(for_distractors, targets, look) for _ in range(scene.distractors)]
        thermal = _thermal_camera(sensors, count, scene.thermal_range)
        edges = _frame_edges(random, count)
        occluder = _occluder(for_occluder, targets[1], occluded)
        moments = [
            Moment(
                view=views[number],
                behind=[*clutter, *(distractor[number] for distractor in distractors)],
                target=Thing(targets[number], look),
                hidden=np.stack([camouflage, camouflage, camouflage, as_warm], axis=1),
                in_front=in_front,
                light=np.where(in_the_dark, sensors.uniform(0.02, 0.3, count), 1.0),
                thermal=thermal,
                noise=sensors.uniform(0.2, 1.5, count) * scene.noise,
                noise_seed=int(sensors.integers(2**63)),
                frame=_frame(targets[number], edges),
            )
            for number, as_warm, in_front, in_the_dark in (
                (0, np.zeros(count, bool), [], dark & happens(DARK_TEMPLATES)),
                (1, crossover, [occluder], dark),
            )
        ]
        return moments, _land(random, count).to(self._device)


def _land(random: np.random.Generator, count: int) -> Tensor:
    """The ground around the target [B, 4, cells, cells]."""
    tint, size = random.uniform(40, 190, (count, 3)), (LAND_CELLS, LAND_CELLS)
    contrast, warmth = random.uniform(0.3, 1.2, count), random.uniform(40, 110, count)
    return scenes.ground(random, tint, size, contrast, warmth)


def _clutter(random: np.random.Generator, target: Outline, reach: Floats) -> Thing:
    """A static thing somewhere around; it stands in the same place in both views."""
    count = len(reach)
    scale = np.sqrt(target.half_width * target.half_height)
    half_width, half_height = scale * np.exp(random.uniform(np.log(0.15), np.log(1.2), (2, count)))
    x, y = random.uniform(-0.8, 0.8, (2, count)) * reach
    outline = Outline(
        x, y, half_width, half_height, random.uniform(0, math.pi, count), random.uniform(-0.12, 0.12, (4, count))
    )
    return Thing(outline, scenes.clutter_texture(random, count))


def _distractor(random: np.random.Generator, targets: list[Outline], look: Tensor) -> list[Thing]:
    """Something that looks like the target, elsewhere in each view."""
    count = len(look)
    there = random.random(count) < 0.7
    own = scenes.distractor_texture(random, look)
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
    return Thing(outline, scenes.occluder_texture(random, count))


def _thermal_camera(random: np.random.Generator, count: int, vary: float) -> Floats:
    """Gain and offset of each scene's thermal camera [2, B]."""
    black_hot = random.random(count) < 0.1 * vary
    gain = np.exp(vary * random.uniform(-0.7, 0.25, count)) * np.where(black_hot, -1, 1)
    return np.stack([gain, 128 - gain * 128 + vary * random.uniform(-50, 50, count)])


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


def _frame(target: Outline, edges: Floats) -> Floats:
    """Where the frame ends: west, east, north, south [4, B]."""
    x, y, w, h = target.boxes().T
    centre_x, centre_y = x + w / 2, y + h / 2
    west, east, north, south = edges
    return np.stack([centre_x - west * w, centre_x + east * w, centre_y - north * h, centre_y + south * h])


def _seen_land(land: Tensor, view: View, size: int, reach: Floats) -> Tensor:
    """The land [B, 4, n, n], which is twice as wide as the search window, at the pixels of a crop [B, 4, H, W]."""
    xs, ys = view.pixel_centres(range(size), range(size), land.device)
    side = torch.from_numpy(reach).to(xs)[:, None, None]
    grid = torch.stack(torch.broadcast_tensors(xs / side, ys / side), dim=-1)
    seen: Tensor = functional.grid_sample(land, grid, padding_mode="reflection", align_corners=True)
    return seen
