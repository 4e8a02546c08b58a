"""Attention of template and search tokens, for all branches, targets and heads in one launch.

    out[s, b, n] = softmax(q[s, b, h, n] . k[s, b, h, :] / sqrt(d)) v[s, b, h, :]      heads side by side

over all current keys, template and search. The softmax runs over tiles of keys with a running maximum and sum, so no
N x N map exists. Where tokens are dropped afterwards, the rows of the template tokens that decide are needed as
probabilities over the search tokens: the few programs that hold such rows walk over the keys a second time, with the
final maximum and sum, and write just these rows, compactly: probabilities[s, b, h, slot[b, t], l].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .overlap import await_producer, launch_options

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class TemplateRows:
    """Which template tokens decide what is dropped; made once per target.

    Attributes:
        slots: place of every template token among those that decide, -1 for the others [B, T] int32.
        counts: how many decide [B] int32.
        most: the largest count, known to the host.
    """

    slots: Tensor
    counts: Tensor
    most: int


def template_rows(mask: Tensor) -> TemplateRows:
    """From the mask of deciding template tokens [B, T]; waits for the device."""
    counts = mask.sum(-1, dtype=torch.int32)
    slots = torch.where(mask, mask.cumsum(-1) - 1, -1).int()
    return TemplateRows(slots.contiguous(), counts.contiguous(), int(counts.max()))


@triton.jit
def _attention_kernel(
    q_ptr,  # [S, B, H, N, D] by strides, D contiguous; k and v alike
    k_ptr,
    v_ptr,
    out_ptr,  # [S, B, N, H * D]
    slots_ptr,  # [B, T] int32, with PROBABILITIES
    probability_ptr,  # [S, B, H, MOST, N - T] float32, with PROBABILITIES
    branch_stride,
    target_stride,
    head_stride,
    token_stride,
    targets,
    heads,
    tokens,
    template,
    most,
    scale,  # log2(e) / sqrt(D)
    D: tl.constexpr,
    WIDTH: tl.constexpr,  # D rounded up to a power of two
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PROBABILITIES: tl.constexpr,
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
    q_at = base + row[:, None] * token_stride + channel[None, :]
    q = tl.load(q_ptr + q_at, mask=ok_row[:, None] & ok_channel[None, :], other=0.0)
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, tokens, KEYS):
        key = start + tl.arange(0, KEYS)
        ok_key = key < tokens
        k_at = base + key[None, :] * token_stride + channel[:, None]
        k = tl.load(k_ptr + k_at, mask=ok_key[None, :] & ok_channel[:, None], other=0.0)
        score = tl.dot(q, k, input_precision=PRECISION) * scale
        score = tl.where(ok_key[None, :], score, float("-inf"))
        higher = tl.maximum(best, tl.max(score, 1))
        weight = tl.math.exp2(score - higher[:, None])
        rescale = tl.math.exp2(best - higher)
        total = total * rescale + tl.sum(weight, 1)
        v_at = base + key[:, None] * token_stride + channel[None, :]
        v = tl.load(v_ptr + v_at, mask=ok_key[:, None] & ok_channel[None, :], other=0.0)
        acc = tl.dot(weight.to(v.dtype), v, acc * rescale[:, None], input_precision=PRECISION)
        best = higher
    out_row = (branch.to(tl.int64) * targets + target) * tokens + row
    out_at = out_row[:, None] * (heads * D) + head * D + channel[None, :]
    out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + out_at, out, mask=ok_row[:, None] & ok_channel[None, :])
    if PROBABILITIES:
        if tile * ROWS < template:
            slot = tl.load(slots_ptr + target * template + row, mask=row < template, other=-1)
            if tl.max(slot, 0) >= 0:
                search = tokens - template
                lane = ((branch.to(tl.int64) * targets + target) * heads + head) * most + slot
                for start in range(0, tokens, KEYS):
                    key = start + tl.arange(0, KEYS)
                    ok_key = key < tokens
                    k_at = base + key[None, :] * token_stride + channel[:, None]
                    k = tl.load(k_ptr + k_at, mask=ok_key[None, :] & ok_channel[:, None], other=0.0)
                    score = tl.dot(q, k, input_precision=PRECISION) * scale
                    probability = tl.math.exp2(score - best[:, None]) / total[:, None]
                    at = lane[:, None] * search + (key - template)[None, :]
                    wanted = (slot >= 0)[:, None] & (ok_key & (key >= template))[None, :]
                    tl.store(probability_ptr + at, probability, mask=wanted)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    out: Tensor | None = None,
    rows: TemplateRows | None = None,
    probabilities: Tensor | None = None,
    template_tokens: int = 0,
    tile_rows: int = 64,
    tile_keys: int = 64,
    warps: int = 4,
    stages: int = 2,
    tf32: bool = False,
    overlap: bool = False,
) -> Tensor:
    """Attend with every token to every token.

    Args:
        q, k, v: [S, B, H, N, D] with equal strides and contiguous channels, for example views of one [S, B, N, 3 H D].
        out: written to, [S, B, N, H * D]; made if None.
        rows: template tokens whose probabilities are wanted.
        probabilities: written to, [S, B, H, rows.most, N - template_tokens] float32; slots that a target does not use
            stay as they are.
        template_tokens: T, the first of the N.
        tile_rows, tile_keys, warps, stages: sizes of one program's work.
        tf32: let float32 products round their factors to tf32.
        overlap: see overlap.py.

    Returns:
        `out`.
    """
    branches, targets, heads, tokens, channels = q.shape
    if not (q.shape == k.shape == v.shape and q.stride() == k.stride() == v.stride() and q.stride(-1) == 1):
        raise ValueError("q, k and v must have equal shapes and strides and contiguous channels")
    if not (q.dtype == k.dtype == v.dtype):
        raise TypeError(f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}: expected one type")
    if (rows is None) != (probabilities is None):
        raise ValueError("rows and probabilities come together")
    if out is None:
        out = torch.empty(branches, targets, tokens, heads * channels, dtype=q.dtype, device=q.device)
    if out.shape != (branches, targets, tokens, heads * channels) or not out.is_contiguous():
        raise ValueError(f"out is {tuple(out.shape)}: expected {(branches, targets, tokens, heads * channels)}")
    if rows is not None and probabilities is not None:
        expected = (branches, targets, heads, rows.most, tokens - template_tokens)
        if probabilities.shape != expected or probabilities.dtype != torch.float32:
            raise ValueError(f"probabilities is {tuple(probabilities.shape)}: expected float32 {expected}")
        if rows.slots.shape != (targets, template_tokens):
            raise ValueError(f"rows are for {tuple(rows.slots.shape)}: expected {(targets, template_tokens)}")
    # One program per tile of queries and per (branch, target, head).
    _attention_kernel[(triton.cdiv(tokens, tile_rows), branches * targets * heads)](
        q,
        k,
        v,
        out,
        rows.slots if rows else out,
        probabilities if probabilities is not None else out,
        *q.stride()[:4],
        targets,
        heads,
        tokens,
        template_tokens,
        rows.most if rows else 0,
        LOG2_E * channels**-0.5,
        D=channels,
        WIDTH=max(16, triton.next_power_of_2(channels)),
        ROWS=tile_rows,
        KEYS=tile_keys,
        PROBABILITIES=rows is not None,
        PRECISION="tf32" if tf32 else "ieee",
        OVERLAP=overlap,
        num_warps=warps,
        num_stages=stages,
        **launch_options(overlap=overlap),
    )
    return out
