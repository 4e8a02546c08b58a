"""From maps to boxes in the frame, and to the next search, all on the device.

For each target, with the box and factor (x, y, w, h, factor) of its crop:

    cell    = first argmax of score * window
    centre  = ((column, row) + offset[cell]) / grid                            float32, as the maps are
    crop    = (centre, size[cell]) * search_size / resize_factor               float32; resize_factor = size / side
    frame   = crop + (x + w / 2, y + h / 2) - half of the crop's side          float64 from here on
    box     = frame's corner and size, at least 10 pixels of it and in it inside the frame
    factor' = lost ? max(f, min(f * lost_scale, 2 * longest side of the frame / sqrt(w h))) : f     f: the model's

Operations and their order are those of `reference/boxes.py`. Nothing is contracted, and divisions round correctly. The
box stays in float64 on the device, where the next crop reads it; the host gets a copy.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .crop import target_state, window_of
from .launch import SETTINGS, Launch, LaunchSettings, Operation, Room, check, fresh_room
from .layout import (
    CELL,
    FACTOR,
    GEOMETRY,
    HEIGHT,
    LOST_SCALE,
    LOST_THRESHOLD,
    OFFSET_TOWER,
    POOL_ROW,
    REQUEST,
    RESULT,
    SCORE,
    SIZE_TOWER,
    STATE,
    WIDTH,
    H,
    Uploaded,
    W,
    X,
    Y,
)
from .overlap import await_producer

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
    geometry_ptr,  # [2, GEOMETRY] float64
    requests_ptr,  # [B, REQUEST] float64
    state_ptr,  # [targets in the pool, STATE] float64, read and written
    constants_ptr,  # [2] float64: the model's search factor, the clipping margin
    result_ptr,  # [B, RESULT] float64
    grid_side,  # cells along a side of the maps
    size,  # side of the search crop
    CELLS: tl.constexpr,  # grid_side * grid_side rounded up to a power of two
    OVERLAP: tl.constexpr,
):
    """One target."""
    await_producer(OVERLAP)
    target = tl.program_id(0)
    cells = grid_side * grid_side
    cell = tl.arange(0, CELLS)
    ok = cell < cells
    maps = maps_ptr + target.to(tl.int64) * 6 * cells
    score = tl.load(maps + cell, mask=ok, other=0.0)
    ranked = tl.where(ok, score * tl.load(window_ptr + cell, mask=ok, other=0.0), float("-inf"))
    best = tl.minimum(tl.argmax(ranked, 0, tie_break_left=True), cells - 1)  # if all is NaN, it may lie beyond
    chosen = tl.load(maps + best)
    offset, size_here = maps + OFFSET_TOWER * 2 * cells + best, maps + SIZE_TOWER * 2 * cells + best
    dx, dy = tl.load(offset), tl.load(offset + cells)
    across, down = tl.load(size_here), tl.load(size_here + cells)
    # If anything is not finite, the score becomes NaN: comparing and clipping could hide it otherwise.
    astray = _not_finite(dx) | _not_finite(dy) | _not_finite(across) | _not_finite(down)
    strange = tl.sum((ok & _not_finite(ranked)).to(tl.int32), 0) + astray.to(tl.int32)
    chosen = tl.where(strange > 0, float("nan"), chosen)
    across, down = tl.where(astray, 0.0, across), tl.where(astray, 0.0, down)
    dx, dy = tl.where(astray, 0.0, dx), tl.where(astray, 0.0, dy)
    x, y, w, h, search_factor = target_state(requests_ptr, state_ptr, target)
    _, _, side = window_of(x, y, w, h, search_factor)
    resize = size.to(tl.float64) / side.to(tl.float64)
    column, row = (best % grid_side).to(tl.float32), (best // grid_side).to(tl.float32)
    cells_across = grid_side.to(tl.float32)
    by = resize.to(tl.float32)
    pixels = size.to(tl.float32)
    cx = tl.div_rn(tl.div_rn(column + dx, cells_across) * pixels, by).to(tl.float64)
    cy = tl.div_rn(tl.div_rn(row + dy, cells_across) * pixels, by).to(tl.float64)
    new_w = tl.div_rn(across * pixels, by).to(tl.float64)
    new_h = tl.div_rn(down * pixels, by).to(tl.float64)
    half = 0.5 * size.to(tl.float64) / resize
    left = (cx + (x + 0.5 * w - half)) - 0.5 * new_w
    top = (cy + (y + 0.5 * h - half)) - 0.5 * new_h
    height, width = tl.load(geometry_ptr + HEIGHT), tl.load(geometry_ptr + WIDTH)
    factor, margin = tl.load(constants_ptr), tl.load(constants_ptr + 1)
    left, new_w = _clip(left, new_w, width, margin)
    top, new_h = _clip(top, new_h, height, margin)
    answer = result_ptr + target * RESULT
    tl.store(answer + X, left)
    tl.store(answer + Y, top)
    tl.store(answer + W, new_w)
    tl.store(answer + H, new_h)
    tl.store(answer + SCORE, chosen.to(tl.float64))
    tl.store(answer + CELL, best.to(tl.float64))
    request = requests_ptr + target * REQUEST
    threshold, scale = tl.load(request + LOST_THRESHOLD), tl.load(request + LOST_SCALE)
    widest = 2.0 * tl.maximum(height, width) / tl.sqrt(new_w * new_h)
    wider = tl.maximum(factor, tl.minimum(factor * scale, widest))
    pool_row = tl.load(request + POOL_ROW).to(tl.int32)
    ends = state_ptr + pool_row * STATE
    known = pool_row >= 0
    tl.store(ends + X, left, mask=known)
    tl.store(ends + Y, top, mask=known)
    tl.store(ends + W, new_w, mask=known)
    tl.store(ends + H, new_h, mask=known)
    tl.store(ends + FACTOR, tl.where(chosen.to(tl.float64) < threshold, wider, factor), mask=known)


def constants(search_factor: float, device: torch.device) -> Tensor:
    """The model's search factor and the clipping margin [2]: a tensor, because Triton would pass floats as float32."""
    return torch.tensor([search_factor, CLIP_MARGIN_PX], dtype=torch.float64, device=device)


def decode(
    maps: Tensor,
    window: Tensor,
    uploaded: Uploaded,
    state: Tensor,
    fixed: Tensor,
    *,
    search_size: int,
    room: Room | None = None,
    settings: LaunchSettings = SETTINGS,
) -> Operation[Tensor]:
    """Boxes of B targets: [B, RESULT] float64. A score of NaN means that the maps were not finite.

    Args:
        maps: of the head [B, 3, 2, cells] float32: score, offset, size.
        window: the prior on the score [cells] float32.
        uploaded: frames and requests of the call, from which the crops were made.
        state: of the pool [rows, STATE] float64; the next search replaces the rows of this call's targets.
        fixed: from `constants`.
        search_size: side of the search crop.
        room: for "result".
        settings: of all launches.
    """
    targets, cells = maps.shape[0], maps.shape[-1]
    check("maps", maps, torch.float32, (targets, 3, 2, cells))
    check("window", window, torch.float32, (cells,))
    check("requests", uploaded.requests, torch.float64, (targets, REQUEST.value))
    check("geometry", uploaded.geometry, torch.float64, (2, GEOMETRY.value))
    check("state", state, torch.float64, (state.shape[0], STATE.value))
    check("fixed", fixed, torch.float64, (2,))
    result = (room or fresh_room(maps.device))("result", (targets, RESULT.value), torch.float64)
    launch = Launch(
        name="decode",
        what=f"{cells} cells",
        kernel=_decode_kernel,
        grid=(targets,),  # one program per target
        arguments={
            "maps_ptr": maps, "window_ptr": window, "geometry_ptr": uploaded.geometry,
            "requests_ptr": uploaded.requests, "state_ptr": state, "constants_ptr": fixed, "result_ptr": result,
            "grid_side": round(cells**0.5), "size": search_size, "CELLS": triton.next_power_of_2(cells),
            "OVERLAP": settings.overlap,
        },
        options={"num_warps": 4, "enable_fp_fusion": False, **settings.options},
        reads=(maps, window, uploaded.geometry, uploaded.requests, state, fixed),
        writes=(result, state),
        flops=2.0 * maps.numel(),
        round_trips=2,  # the peak, then what lies there
    )  # fmt: skip
    return Operation(result, (launch,))
