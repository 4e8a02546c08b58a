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
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    union = a[..., 2:].prod(axis=-1) + b[..., 2:].prod(axis=-1) - shared
    shares: Overlaps = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return shares


def box_row(box: Sequence[float], result_format: ResultFormat) -> str:
    """One line of a result file: four decimals and commas, or the authors' whole numbers (truncated) and tabs."""
    if result_format == "authors":
        return "\t".join(str(int(value)) for value in box) + "\n"
    return ",".join(f"{value:.4f}" for value in box) + "\n"
