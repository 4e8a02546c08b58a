"""From the head's maps to a box in the frame.

Boxes are (x, y, w, h) of the frame in pixels unless the name says otherwise; a box that lives between frames is a tuple
of Python floats (float64).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .head import HeadMaps

Box = tuple[float, float, float, float]
CLIP_MARGIN_PX = 10.0


@dataclass(frozen=True)
class Peak:
    """The best cell of each of B score maps."""

    boxes_cxcywh: Tensor  # centre and size in units of the search crop [B, 4]
    score: Tensor  # the score map's value at the cell, before any window [B]
    cell: Tensor  # row-major index of the cell [B]


def hann_window(grid: int) -> Tensor:
    """The tracker's prior that the target moved little, [1, 1, grid, grid] float32; no zeros at the border."""
    steps = torch.arange(1, grid + 1).float()
    line = 0.5 * (1 - torch.cos((2 * torch.pi / (grid + 1)) * steps))
    return (line[:, None] * line[None, :])[None, None]


def find_peak(maps: HeadMaps, window: Tensor | None = None) -> Peak:
    """The best cell by score, or by score times window; offset, size and score are read at that cell.

    The first of equal maxima in row-major order wins.
    """
    batch, _, _, grid = maps.score.shape
    ranked = maps.score if window is None else maps.score * window
    cell = ranked.flatten(1).argmax(-1)  # [B]

    def at_cell(values: Tensor) -> Tensor:
        return values.flatten(2).gather(-1, cell[:, None, None].expand(batch, values.shape[1], 1)).squeeze(-1)

    offset, size = at_cell(maps.offset), at_cell(maps.size)  # [B, 2]
    column, row = cell % grid, cell.div(grid, rounding_mode="floor")
    centre = (torch.stack([column, row], dim=-1).to(offset.dtype) + offset) / grid
    return Peak(torch.cat([centre, size], dim=-1), at_cell(maps.score).squeeze(-1), cell)


def to_frame(box_cxcywh: Tensor, previous: Box, resize_factor: float, search_size: int) -> Box:
    """A box of the search crop [4] as a box of the frame.

    The crop is taken to be centred on the previous box exactly: the authors correct neither for its rounding to whole
    pixels nor by half a pixel. The product is float32, as in their program; the rest is float64.
    """
    cx, cy, w, h = (box_cxcywh * search_size / resize_factor).tolist()
    half_side = 0.5 * search_size / resize_factor
    cx_frame = cx + (previous[0] + 0.5 * previous[2] - half_side)
    cy_frame = cy + (previous[1] + 0.5 * previous[3] - half_side)
    return cx_frame - 0.5 * w, cy_frame - 0.5 * h, w, h


def clip_box(box: Box, height: int, width: int, margin: float = CLIP_MARGIN_PX) -> Box:
    """Keep at least `margin` pixels of the box, and of its size, inside the frame."""
    x, y, w, h = box
    left, right = min(max(0.0, x), width - margin), min(max(margin, x + w), float(width))
    top, bottom = min(max(0.0, y), height - margin), min(max(margin, y + h), float(height))
    return left, top, max(margin, right - left), max(margin, bottom - top)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centre and size -> corners, [..., 4]."""
    centre, half = boxes[..., :2], 0.5 * boxes[..., 2:]
    return torch.cat([centre - half, centre + half], dim=-1)


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Corner and size -> corners, [..., 4]."""
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], dim=-1)
