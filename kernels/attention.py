"""Attention of template and search tokens, for all branches, targets and heads in one launch.

    out[s, b, n] = softmax(q[s, b, h, n] . k[s, b, h, :] / sqrt(d)) v[s, b, h, :]      heads side by side

over all current keys, template and search. The softmax runs over tiles of keys with a running maximum and sum, so there
is never an N x N map. If tokens are dropped afterwards, the probabilities of the deciding template tokens over the
search tokens are needed. The few programs that hold these rows go over the keys a second time, with the final maximum
and sum, and write only them: probabilities[s, b, h, order[b, t], l].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .float8 import to_float8
from .launch import (
    MOST_OFFSET,
    SETTINGS,
    Launch,
    LaunchSettings,
    Operation,
    Room,
    TileRequest,
    check,
    dtype_name,
    fresh_room,
)
from .overlap import await_producer

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class DecidingTokens:
    """The template tokens that decide which search tokens are dropped; made once per target."""

    order: Tensor  # number of each template token among the deciding ones, -1 for the others [B, T] int32
    counts: Tensor  # how many decide [B] int32
    most: int  # upper bound of the counts, known to the host


def deciding_tokens(mask: Tensor) -> DecidingTokens:
    """From the mask of deciding template tokens [B, T]; waits for the device."""
    counts = mask.sum(-1, dtype=torch.int32)
    order = torch.where(mask, mask.cumsum(-1) - 1, -1).int()
    return DecidingTokens(order.contiguous(), counts.contiguous(), int(counts.max()))


@dataclass(frozen=True)
class Attended:
    """The result of attention."""

    tokens: Tensor  # [S, B, N, H * D]
    # of the deciding tokens [S, B, H, most, N - T] float32, if asked for. Rows beyond a target's count are not
    # written
    probabilities: Tensor | None


@triton.jit
def _attention_kernel(
    q_ptr,  # [S, B, H, N, D] by strides, D contiguous; k and v alike
    k_ptr,
    v_ptr,
    out_ptr,  # [S, B, N, H * D]
    out_scale_ptr,  # [S] or [1] float32: of a result in float8
    order_ptr,  # [B, T] int32, with PROBABILITIES
    probability_ptr,  # [S, B, H, MOST, N - T] float32, with PROBABILITIES
    branch_stride,
    target_stride,
    head_stride,
    token_stride,
    targets,  # B
    heads,  # H
    tokens,  # N
    template,  # T, the first of the N
    most,  # rows that the probabilities have room for
    scale,  # log2(e) / sqrt(D)
    D: tl.constexpr,
    WIDTH: tl.constexpr,  # D rounded up to a power of two
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PROBABILITIES: tl.constexpr,
    SCALES_APART: tl.constexpr,  # 0 where the branches share one scale
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """A tile of queries of one branch, target and head, against all keys."""
    await_producer(OVERLAP)
    tile, which = tl.program_id(0), tl.program_id(1)
    head, target, branch = which % heads, which // heads % targets, which // (heads * targets)
    base = branch.to(tl.int64) * branch_stride + target.to(tl.int64) * target_stride + head * head_stride
    row = tile * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    ok_row, ok_channel = row < tokens, channel < D
    # The base is added to the pointers: inside one head, offsets fit 32 bits.
    q_ptr, k_ptr, v_ptr = q_ptr + base, k_ptr + base, v_ptr + base
    q_at = row[:, None] * token_stride + channel[None, :]
    q = tl.load(q_ptr + q_at, mask=ok_row[:, None] & ok_channel[None, :], other=0.0)
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, tokens, KEYS):
        key = start + tl.arange(0, KEYS)
        ok_key = key < tokens
        k_at = key[None, :] * token_stride + channel[:, None]
        k = tl.load(k_ptr + k_at, mask=ok_key[None, :] & ok_channel[:, None], other=0.0)
        score = tl.dot(q, k, input_precision=PRECISION) * scale
        score = tl.where(ok_key[None, :], score, float("-inf"))
        higher = tl.maximum(best, tl.max(score, 1))
        weight = tl.math.exp2(score - higher[:, None])
        rescale = tl.math.exp2(best - higher)
        total = total * rescale + tl.sum(weight, 1)
        v_at = key[:, None] * token_stride + channel[None, :]
        v = tl.load(v_ptr + v_at, mask=ok_key[:, None] & ok_channel[None, :], other=0.0)
        acc = tl.dot(weight.to(v.dtype), v, acc * rescale[:, None], input_precision=PRECISION)
        best = higher
    out_ptr += (branch.to(tl.int64) * targets + target) * tokens * (heads * D) + head * D
    out_at = row[:, None] * (heads * D) + channel[None, :]
    if out_ptr.dtype.element_ty == tl.float8e4nv:
        out = to_float8(acc / total[:, None], tl.load(out_scale_ptr + branch * SCALES_APART))
    else:
        out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + out_at, out, mask=ok_row[:, None] & ok_channel[None, :])
    if PROBABILITIES:
        if tile * ROWS < template:
            order = tl.load(order_ptr + target * template + row, mask=row < template, other=-1)
            if tl.max(order, 0) >= 0:
                search = tokens - template
                probability_ptr += which.to(tl.int64) * most * search
                for start in range(0, tokens, KEYS):
                    key = start + tl.arange(0, KEYS)
                    ok_key = key < tokens
                    k_at = key[None, :] * token_stride + channel[:, None]
                    k = tl.load(k_ptr + k_at, mask=ok_key[None, :] & ok_channel[:, None], other=0.0)
                    score = tl.dot(q, k, input_precision=PRECISION) * scale
                    probability = tl.math.exp2(score - best[:, None]) / total[:, None]
                    at = order[:, None] * search + (key - template)[None, :]
                    wanted = (order >= 0)[:, None] & (ok_key & (key >= template))[None, :]
                    tl.store(probability_ptr + at, probability, mask=wanted)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    deciding: DecidingTokens | None = None,
    out_scale: Tensor | None = None,
    room: Room | None = None,
    settings: LaunchSettings = SETTINGS,
) -> Operation[Attended]:
    """Attend with every token to every token.

    Args:
        q, k, v: [S, B, H, N, D] with equal strides and contiguous channels, for example views of one [S, B, N, 3 H D].
        deciding: template tokens, the first of the N, whose probabilities are wanted.
        out_scale: [S] or [1] float32, the input scale of the layer in float8 that reads the result: it is divided by it
            and rounded to float8.
        room: for "attended" and "probabilities".
        settings: of all launches.
    """
    branches, targets, heads, tokens, channels = q.shape
    if not (q.shape == k.shape == v.shape and q.stride() == k.stride() == v.stride() and q.stride(-1) == 1):
        raise ValueError("q, k and v must have equal shapes and strides and contiguous channels")
    if not (q.dtype == k.dtype == v.dtype):
        raise TypeError(f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}: expected one type")
    if tokens * max(q.stride(3), heads * channels) > MOST_OFFSET:
        raise ValueError(f"{tokens} tokens {q.stride(3)} values apart: expected offsets below 2^31 inside a head")
    room = room or fresh_room(q.device)
    if out_scale is not None:
        check("out_scale", out_scale, torch.float32, (1 if out_scale.numel() == 1 else branches,))
    out_dtype = q.dtype if out_scale is None else torch.float8_e4m3fn
    out = room("attended", (branches, targets, tokens, heads * channels), out_dtype)
    probabilities, template = None, 0
    if deciding is not None:
        template = deciding.order.shape[1]
        check("deciding.order", deciding.order, torch.int32, (targets, template))
        shape = (branches, targets, heads, deciding.most, tokens - template)
        probabilities = room("probabilities", shape, torch.float32)
    groups = branches * targets * heads
    request = TileRequest("attention", dtype_name(q.dtype), groups, tokens, tokens, channels)
    choice = settings.choose(request)
    tiles = choice.tiles
    launch = Launch(
        name="attention",
        what=f"{tokens} tokens" + (f", {deciding.most} deciding" if deciding else ""),
        kernel=_attention_kernel,
        # One program per tile of queries and per (branch, target, head).
        grid=(triton.cdiv(tokens, tiles.rows), groups),
        arguments={
            "q_ptr": q,
            "k_ptr": k,
            "v_ptr": v,
            "out_ptr": out,
            "out_scale_ptr": out if out_scale is None else out_scale,
            "order_ptr": deciding.order if deciding else out,
            "probability_ptr": out if probabilities is None else probabilities,
            "branch_stride": q.stride(0),
            "target_stride": q.stride(1),
            "head_stride": q.stride(2),
            "token_stride": q.stride(3),
            "targets": targets,
            "heads": heads,
            "tokens": tokens,
            "template": template,
            "most": deciding.most if deciding else 0,
            "scale": LOG2_E * channels**-0.5,
            "D": channels,
            "WIDTH": max(16, triton.next_power_of_2(channels)),
            "ROWS": tiles.rows,
            "KEYS": tiles.columns,
            "PROBABILITIES": deciding is not None,
            "SCALES_APART": int(out_scale is not None and out_scale.numel() > 1),
            "PRECISION": settings.precision,
            "OVERLAP": settings.overlap,
        },
        options={"num_warps": tiles.warps, "num_stages": tiles.stages, **settings.options},
        reads=(q, k, v, *(() if deciding is None else (deciding.order,)), *(() if out_scale is None else (out_scale,))),
        writes=(out,) if probabilities is None else (out, probabilities),
        flops=2 * request.products + 2.0 * groups * template * tokens * channels,
        request=request,
        choice=choice,
    )
    return Operation(Attended(out, probabilities), (launch,))
