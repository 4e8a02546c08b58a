"""Rendered training pairs: a template and a search view of one synthetic scene.

`datasets.scenes` says what a scene looks like. This file says what is in a pair: the same target at two times, with
things around it that stand, others of its kind that move, and what happens to both cameras. Everything is drawn
straight into the crops, at the resolution of a frame, so a small target is as blurred as in a real crop.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ckd_fast.datasets.scenes import casting
from ckd_fast.datasets.scenes.backdrop import Landscape, landscape, metre_at
from ckd_fast.datasets.scenes.cameras import SUNLIGHT, Exposure, Glow
from ckd_fast.datasets.scenes.canvas import View
from ckd_fast.datasets.scenes.figures import Actor, Bytes, Pose, Standing
from ckd_fast.datasets.scenes.render import Moment, render
from ckd_fast.datasets.scenes.tiles import make_tiles
from ckd_fast.reference.config import ModelConfig

from .config import Sampling, SceneConfig
from .samples import Crops

FRAME = (640, 480)  # width and height of the frames that scenes are planned in
SIDES = (24.0, 180.0)  # heights of targets in pixels, from a walker far away to one that fills half of a frame
DARK_TEMPLATES = 0.3  # of the dark scenes: a user starts on what can be seen
SCENES_PER_PLACE = 4  # how many scenes of a batch share a backdrop
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Streams:
    """A stream for each part of the scenes, so that a setting of one part changes nothing in the others."""

    target: np.random.Generator
    places: np.random.Generator
    clutter: np.random.Generator
    distractors: np.random.Generator
    occluder: np.random.Generator
    sensors: np.random.Generator
    trouble: np.random.Generator

    @classmethod
    def from_seed(cls, seed: tuple[int, ...]) -> Streams:
        count = len(dataclasses.fields(cls))
        return cls(*(np.random.default_rng(stream) for stream in np.random.SeedSequence(seed).spawn(count)))


@dataclass(frozen=True)
class Events:
    """What happens in one scene."""

    crossover: bool
    dark: bool
    dark_template: bool
    occluded: bool
    camouflage: bool
    smoke: bool
    glare: bool


class Renderer:
    """Renders pairs.

    Args:
        scene: what they contain.
        sampling: jitter of the search window.
        model: size of both crops, and sides of their windows in multiples of sqrt(w h).
        device: where the crops go; they are drawn on the host.
    """

    def __init__(self, scene: SceneConfig, sampling: Sampling, model: ModelConfig, device: torch.device) -> None:
        self._scene, self._sampling, self._device = scene, sampling, device
        self._sizes = (model.template_size, model.search_size)
        self._factors = (model.template_factor, model.search_factor)
        self._tiles = make_tiles()

    def render(self, count: int, seed: tuple[int, ...]) -> Crops:
        """`count` samples; equal seeds give equal scenes."""
        streams = Streams.from_seed(seed)
        events = _events(np.random.default_rng(seed), self._scene, count)
        # Both modalities of both crops, three channels each [2, B, 3, H, W].
        pictures = [np.empty((2, count, 3, size, size), np.uint8) for size in self._sizes]
        boxes = np.empty((count, 4), np.float32)
        places = [landscape(streams.places, self._tiles, *FRAME) for _ in range(math.ceil(count / SCENES_PER_PLACE))]
        for number in range(count):
            crops, boxes[number] = self._pair(streams, events[number], places[number // SCENES_PER_PLACE])
            for picture, crop in zip(pictures, crops, strict=True):
                *visible, warmth = cv2.split(crop)
                picture[0, number] = visible
                picture[1, number] = warmth
        template, search, target_xywh = (torch.from_numpy(array).to(self._device) for array in (*pictures, boxes))
        return Crops(template, search, target_xywh)

    def _pair(self, streams: Streams, events: Events, place: Landscape) -> tuple[list[Bytes], Box]:
        """Both crops of a scene, and the target's box in the search crop in units of its side."""
        scene, random = self._scene, streams.target
        actor = casting.target(random, self._tiles)
        targets = _target_poses(random, actor.height, place)
        boxes = [actor.figure(pose).box() for pose in targets]
        jitters = (Sampling(centre_jitter=0, scale_jitter=0), self._sampling)
        windows = [_window(random, *parts) for parts in zip(boxes, self._factors, jitters, strict=True)]
        edges = np.where(random.random(4) < 0.1, random.uniform(0.2, 2.0, 4), np.inf)  # in sides of the target
        shadows = (random.uniform(-1.2, 1.2), random.uniform(0.1, 0.35)) if random.random() < 0.5 else None
        reach = windows[1][2]
        scenery = [self._prop(streams.clutter, place, targets[0], reach) for _ in range(scene.clutter)]
        others: list[list[Standing]] = [[], []]
        for _ in range(scene.distractors):
            for there, standing in zip(
                others, self._distractor(streams.distractors, place, targets, boxes, actor), strict=True
            ):
                there.append(standing)
        occluders = [self._occluder(streams.occluder, place, targets[1], boxes[1])] if events.occluded else []
        base = _exposure(streams.sensors, scene)
        crops = []
        for number, (left, top, side) in enumerate(windows):
            searching = number == 1
            crossover, camouflage = float(not (events.crossover and searching)), float(not events.camouflage)
            moment = Moment(
                backdrop=place,
                scenery=(*scenery, *(occluders if searching else [])),
                others=tuple(others[number]),
                target=Standing(actor, targets[number]),
                exposure=_troubled(streams.trouble, base, events, windows[number], searching=searching),
                contrast=(camouflage, camouflage, camouflage, crossover),
                shadows=shadows,
                target_in_front=not (events.occluded and searching),
            )
            size = self._sizes[number]
            # A frame has no more detail than its pixels: what is enlarged is drawn small first.
            drawn = min(size, math.ceil(side))
            view = View(left, top, side / drawn)
            picture = render(moment, view, (drawn, drawn), self._tiles, int(streams.sensors.integers(2**63)))
            if drawn < size:
                picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_LINEAR).astype(np.uint8)
            _black_beyond(picture, edges, boxes[number], windows[number])
            crops.append(picture)
        x, y, w, h = boxes[1]
        left, top, side = windows[1]
        return crops, ((x - left) / side, (y - top) / side, w / side, h / side)

    def _prop(self, random: np.random.Generator, place: Landscape, target: Pose, reach: float) -> Standing:
        """Something that stands somewhere around."""
        x = target.x + random.uniform(-0.9, 0.9) * reach
        lowest = max(place.horizon + 0.06 * FRAME[1], target.y - 0.8 * reach)
        in_front = random.random() < 0.2
        y = target.y + random.uniform(0, 0.3) * reach if in_front else random.uniform(min(lowest, target.y), target.y)
        actor = casting.low_prop(random) if in_front else casting.prop(random, self._tiles)
        return Standing(actor, Pose(x, y, metre_at(place, y), random.uniform(0, 2 * math.pi), swing=0.0))

    def _distractor(
        self, random: np.random.Generator, place: Landscape, targets: list[Pose], boxes: list[Box], actor: Actor
    ) -> list[Standing]:
        """One of the target's kind near it, elsewhere in each view."""
        other = casting.lookalike(random, self._tiles, actor)
        standing = []
        for target, (_, _, w, h) in zip(targets, boxes, strict=True):
            x = target.x + random.choice([-1, 1]) * random.uniform(0.5, 3.0) * math.sqrt(w * h)
            y = max(target.y + random.uniform(-0.5, 0.3) * math.sqrt(w * h), place.horizon + 4)
            pose = Pose(x, y, metre_at(place, y), random.uniform(0, 2 * math.pi), random.uniform(0, 2 * math.pi))
            standing.append(Standing(other, pose))
        return standing

    def _occluder(self, random: np.random.Generator, place: Landscape, target: Pose, box: Box) -> Standing:
        """Something in front of a side of the target."""
        y = target.y + random.uniform(0.02, 0.15) * box[3]
        actor = casting.occluder(random, self._tiles, box[2] / target.metre, box[3] / target.metre)
        pose = Pose(target.x, y, metre_at(place, y), random.choice([0.0, math.pi]), random.uniform(0, 2 * math.pi))
        x, _, w, _ = actor.figure(pose).box()
        covered, from_left = random.uniform(0.25, 0.9) * box[2], random.random() < 0.5
        shift = box[0] + covered - (x + w) if from_left else box[0] + box[2] - covered - x
        return Standing(actor, dataclasses.replace(pose, x=pose.x + shift))


def _events(random: np.random.Generator, scene: SceneConfig, count: int) -> list[Events]:
    draws = random.random((count, 7))
    events = []
    for row in draws.tolist():
        crossover, dark, occluded, camouflage, dark_template, smoke, glare = row
        crossed = crossover < scene.crossover
        # With a crossover too, the target would be nowhere to be seen.
        events.append(Events(
            crossed,
            dark < scene.dark and not crossed,
            dark_template < DARK_TEMPLATES,
            occluded < scene.occlusion,
            camouflage < scene.camouflage and not crossed,
            smoke < scene.smoke and not crossed,
            glare < scene.glare and not crossed,
        ))  # fmt: skip
    return events


def _target_poses(random: np.random.Generator, height: float, place: Landscape) -> list[Pose]:
    """The target in the template view, and later in the search view."""
    tall = math.exp(random.uniform(*np.log(SIDES)))
    metre, grown = tall / height, math.exp(random.normal(0, 0.2))
    x, y = random.uniform(0.1, 0.9) * FRAME[0], place.horizon + place.camera_height * metre
    heading, phase = random.uniform(0, 2 * math.pi), random.uniform(0, 2 * math.pi)
    swing = float(random.choice([0.1, 0.6, 1.0]))
    first = Pose(x, y, metre, heading, phase, swing)
    turned = random.uniform(0, 2 * math.pi) if random.random() < 0.2 else heading + random.normal(0, 0.5)
    later = Pose(
        x + random.normal(0, 1) * tall, place.horizon + place.camera_height * metre * grown, metre * grown,
        turned, random.uniform(0, 2 * math.pi), swing,
    )  # fmt: skip
    return [first, later]


def _window(random: np.random.Generator, box: Box, factor: float, sampling: Sampling) -> tuple[float, float, float]:
    """The square around a target's box after jitter: left, top, side."""
    x, y, w, h = box
    jittered = np.array([w, h]) * np.exp(sampling.scale_jitter * random.normal(size=2))
    scale = math.sqrt(jittered.prod())
    shift_x, shift_y = (scale * sampling.centre_jitter * (random.random(2) - 0.5)).tolist()
    side = float(math.ceil(scale * factor))
    return x + w / 2 + shift_x - side / 2, y + h / 2 + shift_y - side / 2, side


def _exposure(random: np.random.Generator, scene: SceneConfig) -> Exposure:
    """What both views have in common: a thermal camera with its gain and offset, colours, sharpness, noise."""
    vary = scene.thermal_range
    black_hot = random.random() < 0.1 * vary
    gain = math.exp(vary * random.uniform(-0.7, 0.25)) * (-1 if black_hot else 1)
    noise = random.uniform(0.2, 1.5) * scene.noise
    return Exposure(
        light=random.uniform(0.7, 1.1),
        tint=tuple(random.normal(1, 0.05, 3).tolist()),
        gain=gain,
        offset=128 - gain * 128 + vary * random.uniform(-50, 50),
        noise=noise,
        columns=0.3 * noise,
        visible_blur=random.uniform(0, 0.9),
        thermal_blur=random.uniform(0.3, 1.3),
    )


def _troubled(
    random: np.random.Generator, base: Exposure, events: Events, window: tuple[float, float, float], *, searching: bool
) -> Exposure:
    """What goes wrong in one view."""
    darkness, density, strength, (x, y) = (
        random.uniform(0.02, 0.3),
        random.uniform(0.6, 1.0),
        random.uniform(250, 600),
        random.random(2),
    )
    drift = tuple(random.uniform(0, 256, 2).tolist())
    left, top, side = window
    place = (left + float(x) * side, top + float(y) * side)
    glows = []
    light = base.light
    if events.dark and (searching or events.dark_template):
        light *= darkness
        glows.append(Glow(*place, 0.15 * side, 0.2 * strength))
    if events.glare and searching:
        glows.append(Glow(*place, 0.6 * side, strength, SUNLIGHT))
    smoke = density if events.smoke and searching else 0.0
    return dataclasses.replace(base, light=light, smoke=smoke, drift=drift, glows=tuple(glows))


def _black_beyond(picture: Bytes, edges: NDArray[np.float64], box: Box, window: tuple[float, float, float]) -> None:
    """Blacken a crop beyond the frame, whose edges are west, east, north, south of the target in its sides."""
    (x, y, w, h), (left, top, side) = box, window
    west, east, north, south = edges.tolist()
    size: int = picture.shape[0]

    def pixel(position: float, start: float) -> int:
        return round(min(max((position - start) / side, 0.0), 1.0) * size)

    picture[:, : pixel(x + w / 2 - west * w, left)] = 0
    picture[:, pixel(x + w / 2 + east * w, left) :] = 0
    picture[: pixel(y + h / 2 - north * h, top)] = 0
    picture[pixel(y + h / 2 + south * h, top) :] = 0
