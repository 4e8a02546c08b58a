"""From maps to boxes in the frame and to the next search, all on the device.

For each target, with the state (x, y, w, h, factor) that its crop was taken with:

    cell    = first argmax of score * window
    centre  = ((column, row) + offset[cell]) / grid                            float32, as the maps are
    crop    = (centre, size[cell]) * search_size / resize_factor               float32; resize_factor = size / side
    frame   = crop + (x + w / 2, y + h / 2) - half of the crop's side          float64 from here on
    box     = frame's corner and size, at least 10 pixels of it and in it inside the frame
    factor' = lost ? max(f, min(f * lost_scale, 2 * longest side of the frame / sqrt(w h))) : f     f: the model's

The operations and their order are those of `reference/boxes.py`; nothing is contracted, divisions are rounded
correctly. The box stays in float64 on the device, where the next crop reads it; the host gets a copy.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .crop import GEOMETRY, GIVEN, STATE, target_state, window_of
from .overlap import await_producer, launch_options

RESULT = 6  # x, y, w, h, score, cell
CLIP_MARGIN_PX = 10.0


@triton.jit
def _clip(low, extent, limit, margin):
    """One axis of a box: its clipped start and extent."""
    first = tl.minimum(tl.maximum(low, 0.0), limit - margin)
    last = tl.minimum(tl.maximum(low + extent, margin), limit)
    return first, tl.maximum(last - first, margin)


@triton.jit
def _not_finite(value):
    return (tl.abs(value) < float("inf")) == 0


@triton.jit
def _decode_kernel(
    maps_ptr,  # [B, 3, 2, cells] float32
    window_ptr,  # [cells] float32
    geometry_ptr,  # [2, GEOMETRY] float64: height and width of the visible frame come first
    given_ptr,  # [B, 8] float64
    state_ptr,  # [B, 5] float64, read and written
    constants_ptr,  # [2] float64: the model's search factor, the clipping margin
    result_ptr,  # [B, 6] float64
    grid,
    size,
    CELLS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One target."""
    await_producer(OVERLAP)
    target = tl.program_id(0)
    cells = grid * grid
    cell = tl.arange(0, CELLS)
    ok = cell < cells
    maps = maps_ptr + target.to(tl.int64) * 6 * cells
    score = tl.load(maps + cell, mask=ok, other=0.0)
    ranked = tl.where(ok, score * tl.load(window_ptr + cell, mask=ok, other=0.0), float("-inf"))
    best = tl.minimum(tl.argmax(ranked, 0, tie_break_left=True), cells - 1)  # NaN everywhere may choose a lane beyond
    chosen = tl.load(maps + best)
    dx, dy = tl.load(maps + 2 * cells + best), tl.load(maps + 3 * cells + best)
    across, down = tl.load(maps + 4 * cells + best), tl.load(maps + 5 * cells + best)
    # What is not finite makes the result meaningless and shows as a score of NaN; comparing and clipping could hide it.
    astray = _not_finite(dx) | _not_finite(dy) | _not_finite(across) | _not_finite(down)
    strange = tl.sum((ok & _not_finite(ranked)).to(tl.int32), 0) + astray.to(tl.int32)
    chosen = tl.where(strange > 0, float("nan"), chosen)
    across, down = tl.where(astray, 0.0, across), tl.where(astray, 0.0, down)
    dx, dy = tl.where(astray, 0.0, dx), tl.where(astray, 0.0, dy)
    x, y, w, h, search_factor = target_state(given_ptr, state_ptr, target)
    _, _, side = window_of(x, y, w, h, search_factor)
    resize = size.to(tl.float64) / side.to(tl.float64)
    column, row = (best % grid).to(tl.float32), (best // grid).to(tl.float32)
    cells_across = grid.to(tl.float32)
    by = resize.to(tl.float32)
    pixels = size.to(tl.float32)
    cx = tl.div_rn(tl.div_rn(column + dx, cells_across) * pixels, by).to(tl.float64)
    cy = tl.div_rn(tl.div_rn(row + dy, cells_across) * pixels, by).to(tl.float64)
    new_w = tl.div_rn(across * pixels, by).to(tl.float64)
    new_h = tl.div_rn(down * pixels, by).to(tl.float64)
    half = 0.5 * size.to(tl.float64) / resize
    left = (cx + (x + 0.5 * w - half)) - 0.5 * new_w
    top = (cy + (y + 0.5 * h - half)) - 0.5 * new_h
    height, width = tl.load(geometry_ptr), tl.load(geometry_ptr + 1)
    factor, margin = tl.load(constants_ptr), tl.load(constants_ptr + 1)
    left, new_w = _clip(left, new_w, width, margin)
    top, new_h = _clip(top, new_h, height, margin)
    answer = result_ptr + target * 6
    tl.store(answer, left)
    tl.store(answer + 1, top)
    tl.store(answer + 2, new_w)
    tl.store(answer + 3, new_h)
    tl.store(answer + 4, chosen.to(tl.float64))
    tl.store(answer + 5, best.to(tl.float64))
    threshold, scale = tl.load(given_ptr + target * 8 + 6), tl.load(given_ptr + target * 8 + 7)
    widest = 2.0 * tl.maximum(height, width) / tl.sqrt(new_w * new_h)
    wider = tl.maximum(factor, tl.minimum(factor * scale, widest))
    kept = state_ptr + target * 5
    tl.store(kept, left)
    tl.store(kept + 1, top)
    tl.store(kept + 2, new_w)
    tl.store(kept + 3, new_h)
    tl.store(kept + 4, tl.where(chosen.to(tl.float64) < threshold, wider, factor))


def constants(search_factor: float, device: torch.device) -> Tensor:
    """What `decode` needs in float64 and Triton would pass in float32: the model's search factor, the margin [2]."""
    return torch.tensor([search_factor, CLIP_MARGIN_PX], dtype=torch.float64, device=device)


def decode(
    maps: Tensor,
    window: Tensor,
    geometry: Tensor,
    given: Tensor,
    state: Tensor,
    fixed: Tensor,
    result: Tensor,
    *,
    search_size: int,
    overlap: bool = False,
) -> Tensor:
    """Boxes of B targets.

    Args:
        maps: of the head [B, 3, 2, cells] float32: score, offset, size.
        window: the prior on the score [cells] float32.
        geometry, given: as for the crop.
        state: float64 [B, 5]: with what the crop was taken where `given` says to carry on, replaced by the next
            search: x, y, w, h, factor.
        fixed: from `constants`.
        result: written to, [B, 6] float64: x, y, w, h, score, cell; a score of NaN says that maps were not finite.
        search_size: side of the search crop.
        overlap: see overlap.py.

    Returns:
        `result`.
    """
    targets, _, _, cells = maps.shape
    if maps.shape != (targets, 3, 2, cells) or maps.dtype != torch.float32 or not maps.is_contiguous():
        raise ValueError(f"maps is {maps.dtype} {tuple(maps.shape)}: expected float32 [B, 3, 2, cells]")
    if window.shape != (cells,) or window.dtype != torch.float32:
        raise ValueError(f"window is {window.dtype} {tuple(window.shape)}: expected float32 [{cells}]")
    for name, tensor, shape in (
        ("given", given, (targets, GIVEN)), ("state", state, (targets, STATE)), ("result", result, (targets, RESULT)),
        ("geometry", geometry, (2, GEOMETRY)), ("fixed", fixed, (2,)),
    ):  # fmt: skip
        if tensor.shape != shape or tensor.dtype != torch.float64 or not tensor.is_contiguous():
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}: expected contiguous float64 {shape}")
    # One program per target.
    _decode_kernel[(targets,)](
        maps, window, geometry, given, state, fixed, result, round(cells**0.5), search_size,
        CELLS=triton.next_power_of_2(cells), OVERLAP=overlap, num_warps=4, enable_fp_fusion=False,
        **launch_options(overlap=overlap),
    )  # fmt: skip
    return result
