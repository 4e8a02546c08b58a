"""What is drawn: figures, which are polygons from back to front, and what tells where they stand.

A body is built in metres on axes of its own (forward, left, up), turned by its heading and seen from slightly above.
A camera far away is assumed, so nothing shrinks within one figure. Polygons are the truth about a figure: they are
filled on the canvas, and its box is the smallest rectangle around them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Bytes = NDArray[np.uint8]

ROUND = 7  # corners of each end of a limb
_ARC = np.linspace(-math.pi / 2, math.pi / 2, ROUND)
_COS, _SIN = np.cos(_ARC), np.sin(_ARC)
CORE = 0.58  # width of a limb's lit and warm middle
RIM_LIGHT = 0.74  # visible levels at the rim, of those in the middle
RIM_WARMTH = 0.92


@dataclass(frozen=True)
class Pose:
    """Where a figure stands in the scene and what it is doing."""

    x: float  # of the point on the ground below its middle, in pixels of the scene
    y: float
    metre: float  # pixels to a metre there
    heading: float = 0.0  # radians: 0 to the right, pi / 2 away from the camera
    phase: float = 0.0  # of the gait, radians
    swing: float = 1.0  # 0 stands still, 1 walks
    tilt: float = 0.12  # how much higher a point appears for each metre that it is farther away
    sun: float = 0.5  # where light comes from: -1 left, 1 right


class Part(NamedTuple):
    """One polygon of a figure."""

    stop: int  # its corners are the figure's points from the last part's stop to here
    material: int  # row of the palette
    lies: Floats | None = None  # how the actor's cloth or the leaves lie [2, 3]: from 0..1 across and down -> scene
    leaves: int = -1  # number of the foliage that fills the polygon's rectangle; -1: the polygon itself is filled


@dataclass(frozen=True)
class Figure:
    """Polygons in the scene, back to front."""

    points: Floats  # corners of all polygons [N, 2]
    parts: tuple[Part, ...]

    def box(self) -> tuple[float, float, float, float]:
        """The rectangle around it: x, y, w, h."""
        left, top = self.points.min(0).tolist()
        right, bottom = self.points.max(0).tolist()
        return left, top, right - left, bottom - top


@dataclass(frozen=True, eq=False)
class Standing:
    """An actor in a pose."""

    actor: Actor
    pose: Pose

    @functools.cached_property
    def figure(self) -> Figure:
        return self.actor.figure(self.pose)

    def around(self) -> tuple[float, float, float, float]:
        """A rectangle that surely holds its figure and its shadow, without building it: left, top, right, bottom."""
        pose, height = self.pose, self.pose.metre * self.actor.height
        return pose.x - 3 * height, pose.y - 2 * height, pose.x + 3 * height, pose.y + height


class Actor(Protocol):
    """Something that can be drawn in any pose."""

    @property
    def palette(self) -> Floats:
        """Levels of its materials in red, green, blue and warmth [K, 4]."""

    @property
    def cloth(self) -> Bytes | None:
        """A pattern [n, n, 4] for parts that have a place for one."""

    @property
    def height(self) -> float:
        """About, in metres."""

    def figure(self, pose: Pose) -> Figure: ...


class Limb(NamedTuple):
    """A rounded bar between two points of the body, in metres: forward, left, up."""

    start: tuple[float, float, float]
    end: tuple[float, float, float]
    start_radius: float
    end_radius: float
    material: int  # of its middle; the rim has the next row of the palette


@dataclass(frozen=True)
class Axes:
    """The axes of a body in a pose."""

    pose: Pose

    def place(self, points: Floats) -> tuple[Floats, Floats]:
        """Points of the body [..., 3] in the scene [..., 2], and how many metres each is behind the body's middle."""
        pose = self.pose
        cos, sin = math.cos(pose.heading), math.sin(pose.heading)
        forward, left, up = points[..., 0], points[..., 1], points[..., 2]
        depth = forward * sin + left * cos
        seen = np.empty((*points.shape[:-1], 2))
        seen[..., 0] = pose.x + pose.metre * (forward * cos - left * sin)
        seen[..., 1] = pose.y - pose.metre * (up + pose.tilt * depth)
        return seen, depth


def capsules(start: Floats, end: Floats, start_radius: Floats, end_radius: Floats) -> Floats:
    """Outlines of rounded bars in the plane: [P, 2], [P, 2], [P], [P] -> [P, 2 ROUND, 2]."""
    along = end - start
    along /= np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-9)[:, None]
    # Directions of the corners: (cos, sin) of the arc on the axes (along, across).
    arcs = np.empty((len(along), ROUND, 2))
    arcs[..., 0] = along[:, :1] * _COS - along[:, 1:] * _SIN
    arcs[..., 1] = along[:, 1:] * _COS + along[:, :1] * _SIN
    outlines = np.empty((len(along), 2 * ROUND, 2))
    outlines[:, :ROUND] = end[:, None] + end_radius[:, None, None] * arcs
    outlines[:, ROUND:] = start[:, None] - start_radius[:, None, None] * arcs
    return outlines


class Builder:
    """Collects the polygons of a figure, each with its depth, and puts the farthest first."""

    def __init__(self, pose: Pose) -> None:
        self.axes = Axes(pose)
        self._pose = pose
        self._polygons: list[tuple[float, Floats, int, Floats | None, int]] = []

    def limbs(self, limbs: Sequence[Limb]) -> None:
        places, depths = self.axes.place(np.array([limb[:2] for limb in limbs]))  # [P, 2, 2], [P, 2]
        radii = np.array([limb[2:4] for limb in limbs]) * self._pose.metre
        start, end, rims = places[:, 0], places[:, 1], radii.T
        lit = 0.25 * radii.max(1)[:, None] * np.array([self._pose.sun, -0.5])
        outlines = capsules(start, end, rims[0], rims[1])
        cores = capsules(start + lit, end + lit, CORE * rims[0], CORE * rims[1])
        for number, depth in enumerate(depths.mean(1).tolist()):
            material = limbs[number].material
            self._polygons.append((depth, outlines[number], material + 1, None, -1))
            self._polygons.append((depth, cores[number], material, None, -1))

    def hull(self, limbs: Sequence[Limb], *, cloth: bool) -> None:
        """The skin around some limbs, with the actor's cloth over it."""
        places, depths = self.axes.place(np.array([limb[:2] for limb in limbs]))
        radii = np.array([limb[2:4] for limb in limbs]).T * self._pose.metre
        outlines = capsules(places[:, 0], places[:, 1], radii[0], radii[1])
        around = cv2.convexHull(outlines.reshape(-1, 2).astype(np.float32))[:, 0].astype(np.float64)
        depth, material = float(depths.mean()), limbs[0].material
        self._polygons.append((depth, around, material + 1, None, -1))
        middle = around.mean(0)
        inner = middle + (around - middle) * np.array([0.84, 0.97]) + [self._pose.sun * 0.02 * self._pose.metre, 0]
        self._polygons.append((depth, inner, material, laid_over(around, self._pose.heading) if cloth else None, -1))

    def foliage(self, rectangle: Floats, material: int, leaves: int, depth: float) -> None:
        """Leaves in a rectangle of the scene [4, 2], in the colours of two rows of the palette: light, dark."""
        self._polygons.append((depth, rectangle, material, laid_over(rectangle), leaves))

    def figure(self) -> Figure:
        ordered = sorted(self._polygons, key=lambda polygon: -polygon[0])  # stable: as added where equally far
        parts, stop = [], 0
        for _, corners, material, lies, leaves in ordered:
            stop += len(corners)
            parts.append(Part(stop, material, lies, leaves))
        return Figure(np.concatenate([polygon[1] for polygon in ordered]), tuple(parts))


def laid_over(polygon: Floats, turn: float = 0.0) -> Floats:
    """The map [2, 3] that lays a cloth over a polygon's rectangle; a body's turn moves the cloth sideways."""
    low, high = polygon.min(0), polygon.max(0)
    width, height = np.maximum(high - low, 1e-3)
    return np.array([[width, 0, low[0] - width * (turn / math.pi % 1)], [0, height, low[1]]])


def with_rims(middles: Floats) -> Floats:
    """Palettes of limbs: each material [K, 4] followed by its darker and colder rim [2 K, 4]."""
    rims = middles * np.array([RIM_LIGHT] * 3 + [RIM_WARMTH])
    return np.stack([middles, rims], axis=1).reshape(-1, 4)
