"""How a tracker behaves: `TrackerConfig`. Sizes of the network are `ModelConfig`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .errors import InputError

Homography = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class TrackerConfig:
    """Behaviour of a tracker; the defaults are the authors' tracker.

    Attributes:
        color: order of the visible frame's channels.
        lost_threshold: a score below it marks the result as lost. It changes neither box nor state. What a score means
            depends on the weights: None takes the threshold that is calibrated in their file, and 0.2 where there is
            none.
        lost_search_scale: the search crop is this much wider in the frame after a lost one; 1 is off.
        tir_to_rgb: 3x3 homography from thermal to visible pixels, row by row. Without one, a thermal frame of another
            size is scaled to the visible frame's.
        tir_range: for 16-bit thermal frames, the values that become 0 and 255; between them linearly. Without it, the
            range of the frame at `init`, without its darkest and brightest 0.05 %, is kept for the whole track.
        allow_resize: the frames may change size between calls; the box is then scaled along. Otherwise that is an
            error.
    """

    color: Literal["rgb", "bgr"] = "rgb"
    lost_threshold: float | None = None
    lost_search_scale: float = 1.0
    tir_to_rgb: Homography | None = None
    tir_range: tuple[int, int] | None = None
    allow_resize: bool = False

    def __post_init__(self) -> None:
        if self.color not in ("rgb", "bgr"):
            raise InputError(f"color={self.color!r}: known are rgb, bgr")
        for name, low, high in (("lost_threshold", 0, 1), ("lost_search_scale", 1, 4)):
            value = getattr(self, name)
            if value is None and name == "lost_threshold":
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
                raise InputError(f"{name}={value!r}: expected a number in [{low}, {high}]")
        if self.tir_range is not None:
            bounds = tuple(self.tir_range) if isinstance(self.tir_range, tuple | list) else ()
            if len(bounds) != 2 or any(type(v) is not int for v in bounds) or not 0 <= bounds[0] < bounds[1] <= 65535:
                raise InputError(f"tir_range={self.tir_range!r}: expected two whole numbers, 0 <= low < high <= 65535")
            object.__setattr__(self, "tir_range", bounds)
        if self.tir_to_rgb is not None:
            object.__setattr__(self, "tir_to_rgb", _homography(self.tir_to_rgb))


def _homography(rows: Homography) -> Homography:
    """Nine finite numbers that can be inverted, as nested tuples."""
    try:
        matrix = [[float(value) for value in row] for row in rows]
    except (TypeError, ValueError) as error:
        raise InputError(f"tir_to_rgb: expected 3x3 numbers ({error})") from error
    if len(matrix) != 3 or any(len(row) != 3 for row in matrix):
        raise InputError(f"tir_to_rgb: expected 3x3 numbers, got {len(matrix)} rows of {[len(r) for r in matrix]}")
    if not all(math.isfinite(value) for row in matrix for value in row):
        raise InputError("tir_to_rgb: has values that are not finite")
    (a, b, c), (d, e, f), (g, h, i) = matrix
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    if abs(determinant) <= 1e-12 * max(abs(v) for row in matrix for v in row) ** 3:
        raise InputError("tir_to_rgb: cannot be inverted (its determinant is zero)")
    return ((a, b, c), (d, e, f), (g, h, i))
