"""Boxes (x, y, w, h): their overlap, and their rows in result files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

ResultFormat = Literal["float", "authors"]
Overlaps: TypeAlias = NDArray[np.float64]


def iou(first: ArrayLike, second: ArrayLike) -> Overlaps:
    """Intersection over union of boxes (x, y, w, h), [..., 4] each -> [...]; 0 where both are empty."""
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    low = np.maximum(one[..., :2], other[..., :2])
    high = np.minimum(one[..., :2] + one[..., 2:], other[..., :2] + other[..., 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    union = one[..., 2:].prod(axis=-1) + other[..., 2:].prod(axis=-1) - shared
    shares: Overlaps = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return shares


def box_row(box: Sequence[float], result_format: ResultFormat) -> str:
    """One line of a result file: four decimals and commas, or the authors' whole numbers (truncated) and tabs."""
    if result_format == "authors":
        return "\t".join(str(int(value)) for value in box) + "\n"
    return ",".join(f"{value:.4f}" for value in box) + "\n"
