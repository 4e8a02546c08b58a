"""What stands around: trees, bushes, posts, walls and buildings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .figures import Builder, Bytes, Figure, Floats, Limb, Part, Pose, laid_over, with_rims
from .tiles import FOLIAGES, Tiles

BRICKS_METRES = 1.9  # that a cloth of bricks covers
PANE_SIDE = 12  # pixels of a house's cloth to a window

GREENS = np.array([
    (72, 96, 48), (54, 84, 42), (88, 104, 60), (40, 66, 44), (112, 108, 52), (120, 84, 44),
], dtype=np.float64)  # fmt: skip
WALLS = np.array([
    (150, 88, 68), (176, 160, 140), (196, 190, 180), (120, 118, 116), (168, 130, 100), (96, 84, 78), (205, 190, 150),
], dtype=np.float64)  # fmt: skip


@dataclass(frozen=True)
class Plant:
    """A tree, or without a trunk a bush."""

    palette: Floats  # bark, its rim, leaves in the light, leaves in the dark
    cloth: Bytes | None
    height: float
    trunk: float  # height of the stem without leaves
    width: float
    crowns: tuple[tuple[float, float, float, int], ...]  # x, y, size (of the crown's), foliage

    def figure(self, pose: Pose) -> Figure:
        builder = Builder(pose)
        crown = self.height - self.trunk
        if self.trunk:
            thick = 0.028 * self.height
            top = (0.0, 0.0, self.trunk + 0.4 * crown)
            builder.limbs([
                Limb((0.0, 0.0, 0.0), top, thick, 0.5 * thick, 0),
                *(Limb((0.0, 0.0, self.trunk), (side * 0.3 * self.width, 0.0, self.trunk + 0.45 * crown),
                       0.5 * thick, 0.2 * thick, 0) for side in (-1, 1)),
            ])  # fmt: skip
        for x, y, size, number in self.crowns:
            half_width, half_height = 0.5 * size * self.width, 0.5 * size * crown
            middle = (x * self.width, self.trunk + (0.5 + y) * crown)
            left, right = (pose.x + pose.metre * (middle[0] + side * half_width) for side in (-1, 1))
            top_y, bottom = (pose.y - pose.metre * (middle[1] + side * half_height) for side in (1, -1))
            corners = np.array([(left, top_y), (right, top_y), (right, bottom), (left, bottom)])
            builder.foliage(corners, 2, number, -1.0)
        return builder.figure()


@dataclass(frozen=True)
class Post:
    """A pole: of a lamp, of a sign, or a bollard."""

    palette: Floats  # pole, rim, head, rim
    cloth: Bytes | None
    height: float
    radius: float
    arm: float  # how far the lamp hangs over; 0: none
    head: float  # radius of what is on top; 0: nothing

    def figure(self, pose: Pose) -> Figure:
        builder, top = Builder(pose), self.height
        limbs = [Limb((0, 0, 0), (0, 0, top), self.radius * 1.2, self.radius, 0)]
        if self.arm:
            limbs.append(Limb((0, 0, top), (self.arm, 0, top + 0.15), self.radius * 0.7, self.radius * 0.6, 0))
        if self.head:
            limbs.append(
                Limb((self.arm - 0.08, 0, top + 0.12), (self.arm + 0.08, 0, top + 0.12), self.head, self.head, 2)
            )
        builder.limbs(limbs)
        return builder.figure()

    def lamp(self, pose: Pose) -> tuple[float, float]:
        """Where its lamp is in the scene."""
        return pose.x + pose.metre * self.arm, pose.y - pose.metre * self.height


@dataclass(frozen=True)
class Building:
    """A front; a low one without windows is a garden wall or a hoarding."""

    palette: Floats  # wall, coping
    cloth: Bytes | None  # what is on the front
    height: float
    width: float
    repeats: bool  # the cloth covers BRICKS_METRES and repeats; otherwise it is the whole front

    def figure(self, pose: Pose) -> Figure:
        half, tall = 0.5 * self.width, self.height
        front = _upright(pose, half, 0, tall)
        side = BRICKS_METRES * pose.metre
        matrix = np.array([[side, 0, front[0, 0]], [0, side, front[0, 1]]]) if self.repeats else laid_over(front)
        coping = _upright(pose, half + 0.12, 0.98 * tall, 1.02 * tall + 0.1)
        return Figure(np.concatenate([front, coping]), (Part(4, 0, matrix), Part(8, 1)))


def _upright(pose: Pose, half: float, low: float, high: float) -> Floats:
    """A rectangle that faces the camera, from its upper left corner on [4, 2]."""
    left, right = pose.x - pose.metre * half, pose.x + pose.metre * half
    top, bottom = pose.y - pose.metre * high, pose.y - pose.metre * low
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def tree(random: np.random.Generator) -> Plant:
    spruce = random.random() < 0.35
    foliage = [2 * int(number) + spruce for number in random.integers(FOLIAGES // 2, size=3)]
    crowns = [(0.0, 0.0, 1.0, foliage[0])]
    if not spruce:
        crowns += [
            (random.uniform(-0.28, 0.28), random.uniform(-0.2, 0.2), random.uniform(0.5, 0.8), number)
            for number in foliage[1:]
        ]
    height = random.uniform(4.5, 11)
    return Plant(
        _greens(random, random.uniform(55, 95)), None, height, height * random.uniform(0.1, 0.3),
        height * random.uniform(0.55, 0.9), tuple(crowns),
    )  # fmt: skip


def bush(random: np.random.Generator) -> Plant:
    foliage = [2 * int(number) for number in random.integers(FOLIAGES // 2, size=2)]
    height = random.uniform(0.7, 2.2)
    crowns = ((0.0, 0.0, 1.1, foliage[0]), (random.uniform(-0.2, 0.2), -0.1, 0.9, foliage[1]))
    return Plant(_greens(random, random.uniform(60, 100)), None, height, 0.0, height * random.uniform(0.9, 2.0), crowns)


def _greens(random: np.random.Generator, warmth: float) -> Floats:
    light = GREENS[random.integers(len(GREENS))] * random.uniform(0.9, 1.5) + random.normal(0, 6, 3)
    bark = np.array([[84, 70, 58, warmth + random.uniform(-5, 25)]])
    levels = np.concatenate([with_rims(bark), [[*light, warmth + 14], [*(0.3 * light), warmth - 14]]])
    palette: Floats = np.clip(levels, 0, 255)
    return palette


def post(random: np.random.Generator) -> Post:
    kind = random.random()
    metal = np.array([*(np.full(3, random.uniform(45, 150)) + random.normal(0, 6, 3)), random.uniform(50, 120)])
    top = np.array([*random.uniform(60, 235, 3), random.uniform(70, 190)])
    palette = with_rims(np.clip(np.stack([metal, top]), 0, 255))
    if kind < 0.5:
        return Post(
            palette, None, random.uniform(4, 6.5), random.uniform(0.06, 0.11), random.choice([-1, 1]) * 0.8, 0.11
        )
    if kind < 0.75:
        return Post(palette, None, random.uniform(2.0, 3.0), 0.045, 0.0, random.uniform(0.25, 0.35))
    return Post(palette, None, random.uniform(0.5, 0.9), random.uniform(0.1, 0.25), 0.0, 0.0)


def wall(random: np.random.Generator, tiles: Tiles) -> Building:
    """A little higher than people."""
    palette, relief = _masonry(random, tiles)
    cloth = np.clip(palette[0] + relief, 0, 255).astype(np.uint8)
    return Building(np.clip(palette, 0, 255), cloth, random.uniform(1.6, 2.8), random.uniform(1.4, 5), repeats=True)


def building(random: np.random.Generator, tiles: Tiles) -> Building:
    """A house of some storeys."""
    palette, relief = _masonry(random, tiles)
    storeys, columns = (int(value) for value in random.integers([2, 3], [6, 8]))
    rows, width = storeys * PANE_SIDE, columns * PANE_SIDE
    wall = palette[0] + np.tile(relief, (rows // len(relief) + 1, width // len(relief) + 1, 1))[:rows, :width]
    pane, lit = random.uniform(20, 95), random.random((storeys, columns, 1)) < random.uniform(0, 0.4)
    dark_pane = np.array([0.85 * pane, 0.95 * pane, 1.05 * pane, random.uniform(25, 80)])
    panes = np.where(lit, [235, 205, 140, palette[0, 3] + 30], dark_pane).repeat(PANE_SIDE, 0).repeat(PANE_SIDE, 1)
    frame = np.minimum(palette[0] * 1.25, 245)
    row, column = np.mgrid[:rows, :width] / PANE_SIDE % 1
    framed = (abs(column - 0.5) < 0.32) & (abs(row - 0.45) < 0.33)
    glazed = (abs(column - 0.5) < 0.26) & (abs(row - 0.43) < 0.27) & (abs(column - 0.5) > 0.03)
    front = np.where(glazed[..., None], panes, np.where(framed[..., None], frame, wall))
    return Building(
        np.clip(palette, 0, 255), np.clip(front, 0, 255).astype(np.uint8), storeys * 3.2,
        columns * random.uniform(2.4, 3.6), repeats=False,
    )  # fmt: skip


def _masonry(random: np.random.Generator, tiles: Tiles) -> tuple[Floats, Floats]:
    """Levels of a wall and of its coping [2, 4], and a relief to add [n, n, 4]."""
    colour, warmth = WALLS[random.integers(len(WALLS))] * random.uniform(0.7, 1.15), random.uniform(70, 125)
    plaster = random.random() < 0.4
    relief = 0.4 * (tiles.grain[2] - 128.0) if plaster else tiles.bricks[2] - 128.0
    return np.array([[*colour, warmth], [*(0.8 * colour), warmth - 8]]), relief
