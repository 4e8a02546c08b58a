"""What need not be uploaded does not show: crops stay the same when everything else of the frame changes."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from ckd_fast.engines.triton.upload import NOTHING, Rectangle, rectangle_of, scaled_rectangle, warped_rectangle
from ckd_fast.reference.preprocess import Window, crop, crop_window
from ckd_fast.types import Box

FACTOR = 2.0


def changed_outside(frame: NDArray, part: Rectangle) -> NDArray:
    """Inverted outside the rectangle."""
    other = 255 - frame
    rows, columns = slice(part.row, part.row + part.rows), slice(part.column, part.column + part.columns)
    other[rows, columns] = frame[rows, columns]
    return other


def boxes_around(rng: np.random.Generator, height: int, width: int) -> list[Box]:
    """One to three boxes within, across and beyond the borders."""
    boxes = []
    for _ in range(rng.integers(1, 4)):
        w, h = np.exp(rng.uniform(0, 4, 2))
        x, y = rng.uniform(-1.2, 1.4) * width, rng.uniform(-1.2, 1.4) * height
        boxes.append((float(x), float(y), float(w), float(h)))
    return boxes


def assert_enough(
    part: Rectangle, frame: NDArray, boxes: list[Box], onto_grid: Callable[[NDArray], NDArray] = np.asarray
) -> None:
    """Crops do not change with what lies outside of the rectangle."""
    grids = [onto_grid(raw) for raw in (frame, changed_outside(frame, part))]
    for box in boxes:
        one, other = (crop(grid, box, FACTOR, 32).image for grid in grids)
        assert np.array_equal(one, other), f"{box} in {grids[0].shape}: {part} is too little"


@pytest.mark.parametrize("seed", range(4))
def test_visible_frame(seed: int) -> None:
    rng = np.random.default_rng(seed)
    smaller = 0
    for _ in range(200):
        height, width = (int(n) for n in rng.integers(10, 120, 2))
        frame = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        boxes = boxes_around(rng, height, width)
        part = rectangle_of([crop_window(box, FACTOR) for box in boxes], (height, width))
        assert part.row >= 0
        assert part.column >= 0
        assert part.row + part.rows <= height
        assert part.column + part.columns <= width
        smaller += part.rows * part.columns < height * width / 2
        assert_enough(part, frame, boxes)
    assert smaller > 25, "the rectangles were to be smaller than the frame"


@pytest.mark.parametrize("mapped", ["scaled", "homography"])
def test_thermal_frame(mapped: str) -> None:
    rng = np.random.default_rng(5)
    smaller = 0
    for _ in range(300):
        (height, width), (tir_height, tir_width) = rng.integers(10, 120, (2, 2)).tolist()
        frame = rng.integers(0, 256, (tir_height, tir_width, 3)).astype(np.uint8)
        boxes = boxes_around(rng, height, width)
        visible = rectangle_of([crop_window(box, FACTOR) for box in boxes], (height, width))
        matrix = np.diag([width / tir_width, height / tir_height, 1.0])
        matrix += rng.normal(size=(3, 3)) * [[0.2, 0.2, 9], [0.2, 0.2, 9], [4e-3, 4e-3, 0]]

        def onto_grid(raw: NDArray, matrix: NDArray = matrix, size: tuple[int, int] = (width, height)) -> NDArray:
            return cv2.resize(raw, size) if mapped == "scaled" else cv2.warpPerspective(raw, matrix, size)

        if mapped == "scaled":
            part = scaled_rectangle(visible, (height, width), (tir_height, tir_width))
        else:
            part = warped_rectangle(visible, np.linalg.inv(matrix), (tir_height, tir_width))
        smaller += part.rows * part.columns < tir_height * tir_width / 2
        assert_enough(part, frame, boxes, onto_grid)
    assert smaller > 40, "the rectangles were to be smaller than the frame"


def test_known_rectangles() -> None:
    size = (480, 640)
    assert rectangle_of([Window(100, 50, 30)], size) == Rectangle(50, 100, 30, 30)
    assert rectangle_of([Window(100, 50, 30), Window(-5, 470, 40)], size) == Rectangle(50, 0, 430, 130)
    assert rectangle_of([Window(640, 0, 30)], size) == NOTHING
    assert rectangle_of([], size) == NOTHING
    # Wholly left of the frame: content of its far side, as the authors have it.
    assert rectangle_of([Window(-50, 50, 30)], size) == Rectangle(0, 0, 480, 640)
    assert scaled_rectangle(NOTHING, size, (240, 320)) == NOTHING
    assert warped_rectangle(NOTHING, np.eye(3), (240, 320)) == NOTHING
    assert warped_rectangle(Rectangle(50, 100, 30, 30), np.eye(3), size) == Rectangle(48, 98, 34, 34)
    # Its horizon crosses the rectangle.
    tilted = np.array([[1.0, 0, 0], [0, 1, 0], [-0.01, 0, 1]])
    assert warped_rectangle(Rectangle(50, 80, 30, 40), tilted, (240, 320)) == Rectangle(0, 0, 240, 320)
