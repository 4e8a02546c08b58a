"""How figures get onto a picture: polygons with smooth edges, cloth and foliage, clipped to a view."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .figures import Bytes, Figure, Floats
from .tiles import Tiles

Corners = NDArray[np.int32]  # in sixteenths of a pixel [n, 2]
FRACTION_BITS = 4  # corners are given to OpenCV in sixteenths of a pixel
HALF = 127  # of a tile's coverage
_SHADES = np.linspace(0, 1, 256)[:, None]
SHADE = (0.62, 0.64, 0.7, 1.0)  # what a shadow leaves of red, green, blue and warmth


@dataclass(frozen=True)
class View:
    """The part of a scene that a picture shows."""

    left: float  # of the picture's corner, in pixels of the scene
    top: float
    pixel: float = 1.0  # side of a pixel of the picture in the scene

    def corners(self, points: Floats) -> Floats:
        """Points of the scene in pixels of the picture, whose first pixel's corner is (0, 0)."""
        seen: Floats = (points - (self.left, self.top)) / self.pixel
        return seen

    def shows(self, sides: tuple[float, float, float, float], size: tuple[int, ...]) -> bool:
        """Whether a picture of a size [H, W] shows a part of a rectangle: left, top, right, bottom in the scene."""
        left, top, right, bottom = sides
        height, width = (self.pixel * side for side in size)
        return left < self.left + width and right > self.left and top < self.top + height and bottom > self.top

    def box(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """A box of the scene in pixels of the picture."""
        x, y, w, h = box
        return (x - self.left) / self.pixel, (y - self.top) / self.pixel, w / self.pixel, h / self.pixel


def draw(pixels: Bytes, view: View, figure: Figure, palette: Floats, cloth: Bytes | None, tiles: Tiles) -> None:
    """Draw a figure over a picture [H, W, channels], in place."""
    colours, corners, start = palette.tolist(), fixed(view.corners(figure.points)), 0
    for part in figure.parts:
        polygon, start = corners[start : part.stop], part.stop
        if part.lies is not None and part.leaves >= 0:
            light_and_dark = palette[part.material : part.material + 2]
            _grow(pixels, view, tiles.foliage[part.leaves], part.lies, polygon, light_and_dark)
            continue
        cv2.fillPoly(pixels, [polygon], colours[part.material], cv2.LINE_AA, FRACTION_BITS)
        if part.lies is not None and cloth is not None:
            _drape(pixels, view, cloth, part.lies, polygon)


def cover(mask: Bytes, view: View, figure: Figure, tiles: Tiles, value: int) -> None:
    """Write a value into a mask [H, W] wherever a figure is."""
    corners, start = fixed(view.corners(figure.points)), 0
    for part in figure.parts:
        polygon, start = corners[start : part.stop], part.stop
        if part.lies is None or part.leaves < 0:
            cv2.fillPoly(mask, [polygon], value, cv2.LINE_8, FRACTION_BITS)
        elif (where := _window(polygon / (1 << FRACTION_BITS), mask)) is not None:
            top, bottom, left, right = where
            mask[top:bottom, left:right][_laid(view, tiles.foliage[part.leaves], part.lies, where)[..., 0] > HALF] = (
                value
            )


def cast_shadow(pixels: Bytes, view: View, figure: Figure, foot: float, slant: float, length: float) -> None:
    """Darken the visible levels of the ground in a figure's shadow.

    Args:
        pixels: a picture [H, W, 4].
        view: what it shows.
        figure: what stands in the light.
        foot: the line in the scene on which it stands.
        slant: how far the shadow moves to the right for each pixel of height.
        length: how far it moves down.
    """
    height = foot - figure.points[:, 1]
    points = view.corners(np.column_stack([figure.points[:, 0] + slant * height, foot + length * height]))
    window = _window(points, pixels)
    if window is None:
        return
    top, bottom, left, right = window
    part = pixels[top:bottom, left:right]
    mask = np.zeros(part.shape[:2], np.uint8)
    corners, start = fixed(points - (left, top)), 0
    for piece in figure.parts:
        cv2.fillPoly(mask, [corners[start : piece.stop]], 255, cv2.LINE_8, FRACTION_BITS)
        start = piece.stop
    cv2.copyTo(cv2.multiply(part, np.array(SHADE)), mask, part)


def fixed(points: Floats) -> Corners:
    """Corners in the numbers that OpenCV draws from; its pixel centres are whole numbers."""
    return np.rint(points * (1 << FRACTION_BITS) - (1 << FRACTION_BITS - 1)).astype(np.int32)


def _window(points: Floats, pixels: Bytes) -> tuple[int, int, int, int] | None:
    """Rows and columns of a picture around points: top, bottom, left, right; None if they are out of view."""
    (left, top), (right, bottom) = np.floor(points.min(0)) - 1, np.ceil(points.max(0)) + 2
    top, left = max(int(top), 0), max(int(left), 0)
    bottom, right = min(int(bottom), pixels.shape[0]), min(int(right), pixels.shape[1])
    return (top, bottom, left, right) if top < bottom and left < right else None


def _drape(pixels: Bytes, view: View, cloth: Bytes, lies: Floats, polygon: Corners) -> None:
    """Lay a cloth over a polygon that is already in its colour."""
    where = _window(polygon / (1 << FRACTION_BITS), pixels)
    if where is None:
        return
    top, bottom, left, right = where
    window = pixels[top:bottom, left:right]
    mask = np.zeros(window.shape[:2], np.uint8)
    inside = polygon - np.array([left, top], np.int32) * (1 << FRACTION_BITS)
    cv2.fillPoly(mask, [inside], 255, cv2.LINE_8, FRACTION_BITS)
    cv2.copyTo(_laid(view, cloth, lies, where), mask, window)


def _grow(pixels: Bytes, view: View, foliage: Bytes, lies: Floats, polygon: Corners, light_and_dark: Floats) -> None:
    """Draw leaves in a polygon's rectangle."""
    where = _window(polygon / (1 << FRACTION_BITS), pixels)
    if where is None:
        return
    top, bottom, left, right = where
    leaves = _laid(view, foliage, lies, where)
    light, dark = light_and_dark
    colours = np.clip(dark + _SHADES * (light - dark), 0, 255).astype(np.uint8)
    mask = (leaves[..., 0] > HALF).astype(np.uint8)
    cv2.copyTo(colours[leaves[..., 1]], mask, pixels[top:bottom, left:right])


def _laid(view: View, tile: Bytes, lies: Floats, where: tuple[int, int, int, int]) -> Bytes:
    """A tile as it lies in a part of the picture: top, bottom, left, right."""
    top, bottom, left, right = where
    onto = lies / np.array([tile.shape[1], tile.shape[0], 1]) / view.pixel
    # From the tile's pixel numbers to those of the part; pixel centres are whole numbers here.
    onto[:, 2] += 0.5 * onto[:, :2].sum(1) - 0.5 - (view.left / view.pixel + left, view.top / view.pixel + top)
    size = (right - left, bottom - top)
    return cv2.warpAffine(tile, onto, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT).astype(np.uint8)
