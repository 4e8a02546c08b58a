"""Columns of the tables that host and kernels share; all values are float64.

    geometry [2, GEOMETRY]   a row per modality: the frame, and the rectangle of it that was uploaded
    requests [B, REQUEST]    a row per target of this call: where to search
    state    [targets in the pool, STATE]   where the last search of a target ended
    result   [B, RESULT]     a row per target of this call: what was found

They are `tl.constexpr`, because a kernel can read no other global. On the host use `.value`; numpy takes them as
indices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import triton.language as tl
from torch import Tensor


def _columns(count: int) -> tuple[tl.constexpr, ...]:
    return tuple(tl.constexpr(column) for column in range(count))


# geometry: the whole frame; the uploaded rectangle; the 16-bit values that become 0 and 255; from INVERSE on, row by
# row, the nine values of the matrix from visible pixels (x, y, 1) to thermal ones.
HEIGHT, WIDTH, ORIGIN_ROW, ORIGIN_COLUMN, ROWS, COLUMNS, LOW, HIGH, INVERSE = _columns(9)
GEOMETRY = tl.constexpr(17)

# A box, and the side of the crop around it in multiples of sqrt(w h).
X, Y, W, H, FACTOR = _columns(5)

# requests: X to FACTOR as above; CARRY: search where the state says instead of X to FACTOR; the score below which the
# next search with CARRY is wider, and how much wider; the target's row in the pool, -1 for an empty row of the batch.
CARRY, LOST_THRESHOLD, LOST_SCALE, POOL_ROW = (tl.constexpr(column) for column in range(5, 9))
REQUEST = tl.constexpr(9)

STATE = tl.constexpr(5)  # X to FACTOR

# The head's maps [B, 3 towers, 2, cells]: the score (its second map is unused), the offset and the size of each cell.
SCORE_TOWER, OFFSET_TOWER, SIZE_TOWER = _columns(3)

# result: X, Y, W, H, then the score at the peak and the peak's cell.
SCORE, CELL = tl.constexpr(4), tl.constexpr(5)
RESULT = tl.constexpr(6)


@dataclass(frozen=True)
class FrameKind:
    """What uploaded frames look like. The crop kernel is compiled for each kind."""

    rgb_flipped: bool = False  # the visible frame's channels are B, G, R in memory
    tir_channels: int = 3  # 1 or 3; one channel is shown three times
    tir_flipped: bool = False  # three thermal channels are B, G, R in memory
    tir_wide: bool = False  # thermal values have 16 bits
    # how a thermal frame lies on the visible grid: it has its size, is scaled to it, or is warped
    tir_map: Literal["same", "scaled", "homography"] = "same"


@dataclass(frozen=True)
class Uploaded:
    """One call's frames and requests on the device."""

    rgb: Tensor  # uint8, one-dimensional; begins with a rectangle [rows, columns, 3] of the visible frame
    tir: Tensor  # the same of the raw thermal frame; uint8 or uint16
    # [2, GEOMETRY]. Holds the visible frame's height and width even if that frame is missing, because boxes are in
    # its pixels
    geometry: Tensor
    requests: Tensor  # [B, REQUEST]
    present: Tensor  # int32 [2, B], 0 where a modality is missing
    kind: FrameKind  # what the frames look like
