"""What is behind everything: sky, ground with roads and paths, houses and trees at the horizon, or a real frame."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from .canvas import FRACTION_BITS, View, draw, fixed
from .figures import Actor, Bytes, Floats, Pose, Standing
from .scenery import building, bush, tree
from .tiles import GRAIN_SIDE, Tiles

FOCAL = 1.1  # focal length in frame widths
GRAIN_METRES = 11.0  # that a tile of grain covers on the ground
PAVING_METRES = 6.0
FINEST = 0.6  # pixels of a picture to one of a tile at which the next coarser tile begins
NEAREST_GRAIN = 0.02  # share of the frame's height below the horizon at which the ground's grain begins
SKIES = np.array([
    (150, 180, 215), (120, 160, 210), (205, 210, 214), (180, 186, 190), (225, 190, 150), (90, 110, 150),
], dtype=np.float64)  # fmt: skip
GROUNDS = np.array([
    (96, 118, 62), (118, 120, 78), (128, 112, 88), (112, 112, 112), (146, 142, 136), (90, 92, 96), (160, 150, 128),
], dtype=np.float64)  # fmt: skip


class Backdrop(Protocol):
    @property
    def horizon(self) -> float:
        """Its line in the scene."""

    @property
    def camera_height(self) -> float:
        """In metres."""

    def paint(self, pixels: Bytes, view: View, tiles: Tiles) -> None:
        """Fill a picture [H, W, 4]."""


def metre_at(backdrop: Backdrop, y: float) -> float:
    """Pixels to a metre for what stands on a line of the scene."""
    return (y - backdrop.horizon) / backdrop.camera_height


@dataclass(frozen=True)
class Landscape:
    width: float  # of the frame
    height: float
    horizon: float
    camera_height: float
    stops: Floats  # lines of the scene at which the colours below hold [n]
    levels: Floats  # red, green, blue, warmth [n, 4]
    areas: tuple[tuple[Floats, tuple[float, ...]], ...]  # polygons on the ground with their levels, lowest first
    far: tuple[Standing, ...]  # from back to front
    paved: bool
    roughness: float  # strength of the grain
    cloudiness: float
    drift: tuple[float, float]  # where the tiles lie

    def paint(self, pixels: Bytes, view: View, tiles: Tiles) -> None:
        height = pixels.shape[0]
        lines = view.top + view.pixel * (np.arange(height) + 0.5)
        levels = np.stack([np.interp(lines, self.stops, channel) for channel in self.levels.T], axis=1)
        pixels[:] = np.rint(levels).astype(np.uint8)[:, None]
        edge = int(np.clip((self.horizon - view.top) / view.pixel, 0, height))
        if edge > 0:
            _add(pixels[:edge], tiles.clouds, self._sky(view), self.cloudiness)
        if self.paved:
            self._roughen(pixels, view, tiles.bricks, PAVING_METRES, 0.55)
        for polygon, colour in self.areas:
            cv2.fillPoly(pixels, [fixed(view.corners(polygon))], colour, cv2.LINE_AA, FRACTION_BITS)
        self._roughen(pixels, view, tiles.grain, GRAIN_METRES, self.roughness)
        for standing in self.far:
            if view.shows(standing.around(), pixels.shape[:2]):
                draw(pixels, view, standing.figure, standing.actor.palette, standing.actor.cloth, tiles)

    def _sky(self, view: View) -> Floats:
        """From pixels to places on the tile of clouds."""
        step = GRAIN_SIDE / self.width
        x, y = self.drift
        return np.array([
            [step * view.pixel, 0, step * view.left + x],
            [0, 2 * step * view.pixel, 2 * step * view.top + y],
            [0, 0, 1.0],
        ])  # fmt: skip

    def _roughen(self, pixels: Bytes, view: View, relief: tuple[Bytes, ...], metres: float, strength: float) -> None:
        """Add a relief that covers some metres of the ground, in perspective; a coarser one where it is small."""
        height = pixels.shape[0]
        start = height
        for level, tile in enumerate(relief):
            farthest = level == len(relief) - 1
            # At this line a pixel of the picture is as large as one of the tile.
            line = self.horizon + self.camera_height * FINEST * tile.shape[0] / metres / view.pixel
            line = self.horizon + NEAREST_GRAIN * self.height if farthest else line
            stop, start = start, int(np.clip((line - view.top) / view.pixel, 0, start))
            if start < stop:
                _add(pixels[start:stop], tile, self._ground(view, start, tile.shape[0] / metres), strength)

    def _ground(self, view: View, edge: int, step: float) -> Floats:
        """From pixels below a row to places on a tile with some pixels to a metre."""
        tall, (x, y) = step * self.camera_height, self.drift
        from_scene = np.array([
            [tall, x, -tall * self.width / 2 - x * self.horizon],
            [0, y, tall * FOCAL * self.width - y * self.horizon],
            [0, 1, -self.horizon],
        ])  # fmt: skip
        half = 0.5 * view.pixel
        to_scene = np.array([
            [view.pixel, 0, view.left + half], [0, view.pixel, view.top + view.pixel * edge + half], [0, 0, 1.0]
        ])  # fmt: skip
        onto: Floats = from_scene @ to_scene
        return onto


def _add(pixels: Bytes, tile: Bytes, onto: Floats, strength: float) -> None:
    """Add a relief around 128 to a picture, in place."""
    size = (pixels.shape[1], pixels.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    relief = cv2.warpPerspective(tile, onto, size, flags=flags, borderMode=cv2.BORDER_WRAP)
    cv2.addWeighted(pixels, 1.0, relief, strength, -128 * strength, dst=pixels)


def landscape(random: np.random.Generator, tiles: Tiles, width: float, height: float) -> Landscape:
    """Somewhere outdoors."""
    high = random.random() < 0.2  # seen from above: no sky
    horizon = height * (random.uniform(-0.9, -0.3) if high else random.uniform(0.18, 0.42))
    middle = 0.65 * height  # a line on which things have the usual size
    camera_height = (middle - horizon) / (height * random.uniform(0.08, 0.14))
    sky = np.clip(SKIES[random.integers(len(SKIES))] * random.uniform(0.85, 1.1), 0, 250)
    ground = GROUNDS[random.integers(len(GROUNDS))] * random.uniform(0.7, 1.15)
    warm, cold = random.uniform(55, 110), random.uniform(8, 40)
    haze = 0.7 * ground + 0.3 * sky
    stops = np.array([min(-0.2 * height, horizon - 1), horizon, horizon + 0.5, horizon + 0.15 * height, 1.1 * height])
    levels = np.array([
        [*sky, cold], [*np.minimum(sky * 1.15 + 8, 250), cold + 25], [*haze, warm - 8], [*ground, warm],
        [*(0.85 * ground), warm + random.uniform(-12, 18)],
    ])  # fmt: skip
    place = Landscape(
        width, height, horizon, camera_height, stops, np.clip(levels, 0, 255), (), (), bool(random.random() < 0.3),
        random.uniform(0.35, 0.8), random.uniform(0, 0.8), tuple(random.uniform(0, GRAIN_SIDE, 2).tolist()),
    )  # fmt: skip
    areas = _ways(random, place, warm)
    far = () if high else _far(random, tiles, place)
    return dataclasses.replace(place, areas=areas, far=far)


def _ways(random: np.random.Generator, place: Landscape, warm: float) -> tuple[tuple[Floats, tuple[float, ...]], ...]:
    """Roads and paths on the ground."""
    areas: list[tuple[Floats, tuple[float, ...]]] = []
    width, height, horizon = place.width, place.height, place.horizon
    tone = random.uniform(60, 120)
    asphalt = (tone, tone, tone * 1.04, warm + random.uniform(-5, 25))
    kerb, paint = (150.0, 148.0, 144.0, warm + 4), (215.0, 214.0, 205.0, warm + 6)
    far_away = 4 * width

    def line(depth: float) -> float:
        return horizon + place.camera_height * FOCAL * width / depth

    if random.random() < 0.55:  # a road across
        nearest = FOCAL * width * place.camera_height / (1.05 * height - horizon)
        near = nearest * random.uniform(1.0, 2.2)
        far = near + random.uniform(5, 8)
        top, bottom = line(far), line(near)

        def strip(upper: float, lower: float, left: float = -far_away, right: float = far_away) -> Floats:
            return np.array([(left, upper), (right, upper), (right, lower), (left, lower)])

        areas += [(strip(line(far + 0.4), line(near - 0.3)), kerb), (strip(top, bottom), asphalt)]
        middle, metre = line((near + far) / 2), (line((near + far) / 2) - horizon) / place.camera_height
        for number in range(-12, 13):
            left = 0.5 * width + metre * (4 * number + random.uniform(0, 0.2))
            areas.append((strip(middle - 0.03 * metre, middle + 0.03 * metre, left, left + 1.8 * metre), paint))
    if random.random() < 0.5:  # a path into the distance
        vanishing, foot = random.uniform(-0.2, 1.2) * width, random.uniform(-0.2, 1.2) * width
        bottom = 1.4 * height
        half = random.uniform(1, 3.5) * (bottom - horizon) / place.camera_height
        tip = max(horizon, -0.4 * height)
        share = (tip - horizon) / (bottom - horizon)
        middle_x = vanishing + share * (foot - vanishing)
        way = np.array(
            [
                (middle_x - share * half, tip),
                (middle_x + share * half, tip),
                (foot + half, bottom),
                (foot - half, bottom),
            ]
        )
        rim = way + np.array([(-share, 0), (share, 0), (1, 0), (-1, 0)]) * 0.08 * half
        areas += [(rim, kerb), (way, (tone * 1.25, tone * 1.2, tone * 1.1, warm + random.uniform(-8, 15)))]
    return tuple((polygon, tuple(np.clip(colour, 0, 255).tolist())) for polygon, colour in areas)


def _far(random: np.random.Generator, tiles: Tiles, place: Landscape) -> tuple[Standing, ...]:
    """Houses, and trees in front of them, at some distance."""

    def stand(actor: Actor, nearest: float, farthest: float) -> Standing:
        y = place.horizon + place.height * random.uniform(nearest, farthest)
        return Standing(actor, Pose(random.uniform(-0.25, 1.25) * place.width, y, metre_at(place, y)))

    houses = [stand(building(random, tiles), 0.035, 0.11) for _ in range(int(random.integers(0, 4)))]
    row = [stand(tree(random), 0.03, 0.05) for _ in range(int(random.choice([2, 12])))]
    near = [
        stand(tree(random) if random.random() < 0.7 else bush(random), 0.05, 0.17)
        for _ in range(int(random.integers(1, 6)))
    ]
    return tuple(sorted((*houses, *row, *near), key=lambda each: each.pose.y))
