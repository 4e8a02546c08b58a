"""Which part of the raw frames a call's crops can touch, so that no more is copied to the device.

Everything here may say too much, never too little; `tests/engines/test_upload.py` compares crops from the part with
crops from the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ckd_fast.frames import Size
from ckd_fast.reference.preprocess import Window

MARGIN_PX = 2  # a bilinear tap's neighbour, and the rounding of positions
FLATTEST = 1e-3  # a homography's denominator, in units of its terms, under which the whole frame is taken


@dataclass(frozen=True)
class Rectangle:
    """Rows row..row+rows and columns column..column+columns of a frame; possibly none."""

    row: int
    column: int
    rows: int
    columns: int


NOTHING = Rectangle(0, 0, 0, 0)


def _whole(size: Size) -> Rectangle:
    return Rectangle(0, 0, *size)


def _between(row: int, column: int, end_row: int, end_column: int) -> Rectangle:
    """From the first row and column to the last ones, exclusive."""
    if end_row <= row or end_column <= column:
        return NOTHING
    return Rectangle(row, column, end_row - row, end_column - column)


def rectangle_of(windows: Iterable[Window], size: Size) -> Rectangle:
    """The pixels of a visible frame (height, width) that crops of some windows show.

    A window wholly left of or above the frame shows content from its far side, see `reference.preprocess.crop`; the
    whole frame is needed then.
    """
    height, width = size
    shown = []
    for window in windows:
        right, bottom = window.left + window.side, window.top + window.side
        if right < 0 or bottom < 0:
            return _whole(size)
        part = _between(max(window.top, 0), max(window.left, 0), min(bottom, height), min(right, width))
        if part != NOTHING:
            shown.append(part)
    if not shown:
        return NOTHING
    return _between(
        min(part.row for part in shown),
        min(part.column for part in shown),
        max(part.row + part.rows for part in shown),
        max(part.column + part.columns for part in shown),
    )


def scaled_rectangle(visible: Rectangle, visible_size: Size, thermal_size: Size) -> Rectangle:
    """The pixels of a thermal frame, scaled to the visible size, that a rectangle of the visible grid needs."""
    if visible == NOTHING:
        return NOTHING

    def span(start: int, count: int, length: int, source: int) -> tuple[int, int]:
        scale = source / length
        first = math.floor((start + 0.5) * scale - 0.5) - MARGIN_PX
        last = math.ceil((start + count - 0.5) * scale - 0.5) + MARGIN_PX
        return max(first, 0), min(last + 1, source)

    row, end_row = span(visible.row, visible.rows, visible_size[0], thermal_size[0])
    column, end_column = span(visible.column, visible.columns, visible_size[1], thermal_size[1])
    return _between(row, column, end_row, end_column)


def warped_rectangle(visible: Rectangle, inverse: NDArray[np.float64], thermal_size: Size) -> Rectangle:
    """The pixels of a warped thermal frame that a rectangle of the visible grid needs.

    A homography maps the rectangle into the hull of its mapped corners as long as no denominator in it nears zero.

    Args:
        visible: rectangle of the visible grid.
        inverse: from visible pixels (x, y, 1) to thermal ones [3, 3].
        thermal_size: height and width of the thermal frame.
    """
    if visible == NOTHING:
        return NOTHING
    columns = (visible.column, visible.column + visible.columns - 1)
    rows = (visible.row, visible.row + visible.rows - 1)
    corners = np.array([(x, y, 1.0) for x in columns for y in rows])
    x, y, depth = inverse @ corners.T
    if depth.min() * depth.max() <= 0 or abs(depth).min() < FLATTEST * (abs(inverse[2]) @ corners.T).max():
        return _whole(thermal_size)
    x, y = x / depth, y / depth
    height, width = thermal_size
    # Bounded before they become whole numbers: corners may lie anywhere.
    return _between(
        max(math.floor(max(y.min(), -1e6)) - MARGIN_PX, 0),
        max(math.floor(max(x.min(), -1e6)) - MARGIN_PX, 0),
        min(math.ceil(min(y.max(), 1e6)) + MARGIN_PX + 1, height),
        min(math.ceil(min(x.max(), 1e6)) + MARGIN_PX + 1, width),
    )
