"""Cars, vans, buses and lorries: boxes with a profile, seen from any side."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from .figures import Axes, Bytes, Figure, Floats, Part, Pose, laid_over
from .tiles import Tiles, cloth_pattern

BODY, ROOF, GLASS, TYRE, HUB, LAMP, REAR_LAMP, BONNET, EXHAUST, UNDER, TRIM, CARGO, END, SILL = range(14)

CABIN_WIDTH = 0.88  # of the body's
_TURN = np.linspace(0, 2 * math.pi, 14, endpoint=False)
_ROUND = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)

PAINTS = np.array([
    (225, 226, 228), (30, 30, 34), (120, 124, 130), (180, 182, 186), (150, 28, 30), (32, 60, 120), (60, 90, 70),
    (200, 190, 160), (90, 75, 60), (225, 180, 40), (70, 130, 170),
], dtype=np.float64)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A vehicle's profile in metres: points (along, up) around the side, clockwise from the lower rear."""

    body: tuple[tuple[float, float], ...]
    cabin: tuple[tuple[float, float], ...]  # lower rear, upper rear, upper front, lower front
    width: float
    wheels: tuple[float, ...]  # along
    wheel: float  # radius
    windows: int  # on a side
    bonnet: tuple[float, float]  # along, where it begins and ends


CAR = Shape(
    ((-2.1, 0.28), (-2.15, 0.62), (-2.0, 0.9), (0.9, 0.93), (1.95, 0.76), (2.12, 0.5), (2.1, 0.28)),
    ((-1.85, 0.88), (-1.15, 1.42), (0.1, 1.44), (1.0, 0.92)), 1.72, (-1.3, 1.32), 0.32, 2, (0.95, 2.0),
)  # fmt: skip
HATCHBACK = Shape(
    ((-1.85, 0.28), (-1.9, 0.7), (-1.8, 0.95), (0.85, 0.98), (1.7, 0.8), (1.88, 0.5), (1.86, 0.28)),
    ((-1.78, 0.93), (-1.5, 1.5), (0.15, 1.53), (0.95, 0.96)), 1.7, (-1.2, 1.2), 0.31, 2, (0.95, 1.75),
)  # fmt: skip
OFF_ROADER = Shape(
    ((-2.2, 0.42), (-2.25, 0.75), (-2.2, 1.12), (0.95, 1.15), (2.1, 1.04), (2.22, 0.7), (2.2, 0.42)),
    ((-2.15, 1.1), (-2.0, 1.78), (0.3, 1.8), (1.0, 1.13)), 1.85, (-1.35, 1.4), 0.4, 3, (1.0, 2.1),
)  # fmt: skip
VAN = Shape(
    ((-2.5, 0.35), (-2.55, 0.8), (-2.5, 1.15), (1.7, 1.15), (2.35, 1.0), (2.5, 0.6), (2.45, 0.35)),
    ((-2.5, 1.1), (-2.45, 2.15), (1.0, 2.15), (1.75, 1.13)), 1.95, (-1.6, 1.6), 0.36, 1, (1.7, 2.4),
)  # fmt: skip
BUS = Shape(
    ((-5.0, 0.4), (-5.0, 1.1), (-5.0, 1.4), (4.9, 1.4), (5.0, 1.2), (5.0, 0.8), (5.0, 0.4)),
    ((-5.0, 1.35), (-4.95, 2.9), (4.75, 2.9), (4.95, 1.35)), 2.5, (-3.0, 3.3), 0.5, 7, (-5.0, -3.9),
)  # fmt: skip
SHAPES = (CAR, HATCHBACK, OFF_ROADER, VAN, BUS)


class Piece(NamedTuple):
    """A polygon of a vehicle."""

    points: Floats  # forward, left, up in metres [n, 3]
    material: int
    hull: bool = False  # drawn as the hull of its points
    cloth: bool = False


@dataclass(frozen=True)
class Vehicle:
    palette: Floats
    cloth: Bytes | None  # lettering on the side
    shape: Shape
    height: float

    def figure(self, pose: Pose) -> Figure:
        half = self.shape.width / 2
        near = -half if math.cos(pose.heading) >= 0 else half  # the side that faces the camera, to the left of it
        front_seen = math.sin(pose.heading) < 0
        pieces = [*self._body(near, front_seen=front_seen), *self._cabin(near, front_seen=front_seen)]
        places, _ = Axes(pose).place(np.concatenate([piece.points for piece in pieces]))
        polygons, parts, start, stop = [], [], 0, 0
        for piece in pieces:
            corners = places[start : start + len(piece.points)]
            start += len(piece.points)
            if piece.hull:
                corners = cv2.convexHull(corners.astype(np.float32))[:, 0].astype(np.float64)
            stop += len(corners)
            polygons.append(corners)
            parts.append(Part(stop, piece.material, laid_over(corners) if piece.cloth else None))
        return Figure(np.concatenate(polygons), tuple(parts))

    def _body(self, near: float, *, front_seen: bool) -> list[Piece]:
        shape, half = self.shape, self.shape.width / 2
        (rear, low), (front, _) = shape.body[0], shape.body[-1]
        begin, end = shape.bonnet
        high, nose = shape.body[3][1], shape.body[4][1]
        tip, top = (front, nose) if front_seen else (rear, shape.body[2][1])

        def face(left: float, right: float, above: float, below: float, material: int) -> Piece:
            """A rectangle on the end that is seen."""
            return _piece([(tip, left, above), (tip, right, above), (tip, right, below), (tip, left, below)], material)

        def strip(inset: float, below: float, above: float, material: int) -> Piece:
            """A band along the near side."""
            corners = ((rear + inset, below), (front - inset, below), (front - inset, above), (rear + inset, above))
            return _piece([(along, near, up) for along, up in corners], material)

        lamp = LAMP if front_seen else REAR_LAMP
        exhaust = [] if front_seen else [face(half * 0.5, half * 0.7, low + 0.09, low, EXHAUST)]
        return [
            _piece([(rear, -half, 0.05), (front, -half, 0.05), (front, half, 0.05), (rear, half, 0.05)], UNDER),
            *self._wheels(-near),
            _piece([(along, side, up) for along, up in shape.body for side in (-half, half)], ROOF, hull=True),
            _piece([(begin, -half, high), (end, -half, nose), (end, half, nose), (begin, half, high)], BONNET),
            face(-half, half, top, low, END),
            *(face(side * half * 0.95, side * half * 0.6, top - 0.1, top - 0.26, lamp) for side in (-1, 1)),
            face(-half * 0.35, half * 0.35, low + 0.22, low + 0.1, TRIM),
            *exhaust,
            _piece([(along, near, up) for along, up in shape.body], BODY),
            strip(0.03, low, low + 0.22, SILL),
            _piece(
                [(begin, near, high), (end, near, nose), (end, near, nose - 0.2), (begin, near, high - 0.22)], BONNET
            ),
            strip(0.1, low + 0.06, low + 0.13, TRIM),
            *self._wheels(near),
        ]

    def _wheels(self, side: float) -> list[Piece]:
        return [
            Piece(
                np.column_stack(
                    [
                        along + radius * _ROUND[:, 0],
                        np.full(len(_ROUND), side),
                        self.shape.wheel + radius * _ROUND[:, 1],
                    ]
                ),
                material,
            )
            for along in self.shape.wheels
            for radius, material in ((self.shape.wheel, TYRE), (self.shape.wheel * 0.6, HUB))
        ]

    def _cabin(self, near: float, *, front_seen: bool) -> list[Piece]:
        (back_x, waist), (roof_back, roof), (roof_front, _), (front_x, _) = self.shape.cabin
        half, near = CABIN_WIDTH * self.shape.width / 2, CABIN_WIDTH * near
        low, high = (front_x, roof_front) if front_seen else (back_x, roof_back)
        panelled = self.shape.windows == 1  # a van

        def level(share: float) -> float:
            return waist + share * (roof - waist)

        def end(inset: float, below: float, above: float, material: int) -> Piece:
            """A part of the windscreen's or the rear window's plane."""
            corners = ((below, -1), (below, 1), (above, 1), (above, -1))
            return _piece(
                [(low + share * (high - low), side * half * inset, level(share)) for share, side in corners], material
            )

        def on_side(along: float, share: float) -> tuple[float, float, float]:
            """A point of the near side: from rear to front, from waist to roof."""
            ends = back_x + share * (roof_back - back_x), front_x + share * (roof_front - front_x)
            return (1 - along) * ends[0] + along * ends[1], near, level(share)

        def pane(start: float, stop: float) -> Piece:
            return _piece(
                [on_side(*corner) for corner in ((start, 0.1), (start, 0.86), (stop, 0.86), (stop, 0.1))], GLASS
            )

        # One window: a van's, at the driver's seat only.
        edges = np.linspace(0.72 if panelled else 0.0, 1, self.shape.windows + 1).tolist()
        gap = 0.18 * (edges[1] - edges[0])
        return [
            _piece([(along, side, up) for along, up in self.shape.cabin for side in (-half, half)], ROOF, hull=True),
            end(1.0, 0.0, 1.0, END),
            *([] if panelled and not front_seen else [end(0.9, 0.1, 0.88, GLASS)]),
            _piece([on_side(*corner) for corner in ((0, 0), (0, 1), (1, 1), (1, 0))], CARGO if panelled else BODY,
                   cloth=True),
            *(pane(start + gap, stop - gap) for start, stop in itertools.pairwise(edges)),
        ]  # fmt: skip


def _piece(
    points: list[tuple[float, float, float]], material: int, *, hull: bool = False, cloth: bool = False
) -> Piece:
    return Piece(np.array(points), material, hull, cloth)


def vehicle(random: np.random.Generator, tiles: Tiles) -> Vehicle:
    """Something that drives, or has."""
    number = int(random.choice(len(SHAPES), p=[0.3, 0.25, 0.2, 0.15, 0.1]))
    shape = SHAPES[number]
    paint = np.clip(PAINTS[random.integers(len(PAINTS))] * random.uniform(0.8, 1.15) + random.normal(0, 5, 3), 8, 245)
    outside = random.uniform(60, 110)
    running = random.random() < 0.7  # its engine has been
    engine, tyres = (random.uniform(150, 235), random.uniform(130, 210)) if running else (outside + 5, outside + 15)
    roof = np.clip(paint * 1.12 + 6, 0, 250)
    palette = np.array([
        [*paint, outside], [*roof, outside - 15], [34, 42, 50, outside - 28], [22, 22, 24, tyres],
        [130, 132, 136, tyres - 35], [245, 244, 225, outside + 25 * running], [165, 25, 25, outside + 15 * running],
        [*np.clip(paint * 1.05, 0, 250), engine], [60, 60, 62, min(engine + 30, 255)],
        [18, 18, 20, outside + 22 * running], [48, 48, 52, outside - 8], [*paint, outside + 4],
        [*(0.82 * paint), outside - 6], [*(0.6 * paint), outside + 8],
    ])  # fmt: skip
    second = np.append(PAINTS[random.integers(len(PAINTS))], outside + random.uniform(-8, 8))
    pattern = cloth_pattern(random, tiles, palette[BODY], second) if shape is VAN and random.random() < 0.5 else None
    return Vehicle(palette, pattern, shape, shape.cabin[1][1])
