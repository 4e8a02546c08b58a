"""Which search tokens stay, decided on the device; and the card's operation as one function, `attend_score_gather`.

From the attention kernel's rows p[s, b, h, r, l] (probabilities of the deciding template tokens r over the L current
search tokens, softmax over all keys):

    score[b, l] = mean over h of mean over r of max over s of p[s, b, h, r, l]       "mce"; "ce": s decides for itself
    rank[l]     = #{j : score[j] > score[l], or score[j] = score[l] and j < l}       a stable descending sort
    kept_index[rank[l]] = l   where rank[l] < K

Joins across programs. A score needs the rows of both branches and of all heads, which different programs of the
attention kernel wrote; a rank needs all scores. Both joins are the boundary between two launches on one stream, so the
host waits for nothing. Inside the ranking launch no join is left: each program ranks some of the tokens and computes
all scores anew, which costs a few kilobytes of reading; the same operations in the same order give every program the
same bits, so equal scores are equal everywhere.

The gather is never a pass of its own in the engine: `rows` is the row index of the next linear layer, which therefore
skips what was dropped. `attend_score_gather` ends with a gather for those who want the tokens themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import TemplateRows, attention
from .overlap import await_producer, launch_options

RANKED_ROWS = 64


@dataclass(frozen=True)
class Decision:
    """What stays, for S branches and B targets; all on the device.

    Attributes:
        scores: of the current search tokens [S, B, L] float32.
        kept_index: kept tokens in the current order, best first [S, B, K] int32.
        kept: the same as raster positions [S, B, K] int32.
        rows: rows of the kept sequence in the current one, template first [S, B, T + K] int32.
        place: row of every raster position in the kept sequence, -1 where it was dropped [S, B, search] int32.
    """

    scores: Tensor
    kept_index: Tensor
    kept: Tensor
    rows: Tensor
    place: Tensor


@triton.jit
def _scores(
    probability_ptr,
    present_ptr,
    target,
    decider,
    token,
    ok,
    count,
    targets,
    heads,
    most,
    search,
    BRANCHES: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Scores of some tokens: the sum over heads and rows of the maximum over branches, or of one branch."""
    total = tl.zeros(token.shape, tl.float32)
    alone = 0
    if not TOGETHER:
        alone = tl.load(present_ptr + decider * targets + target)
    for head in range(heads):
        for row in range(count):
            value = tl.zeros(token.shape, tl.float32)
            for branch in tl.static_range(BRANCHES):
                # A missing modality has no vote; a branch that decides alone listens to itself if it is there.
                votes = tl.load(present_ptr + branch * targets + target) != 0
                if not TOGETHER:
                    votes = votes & ((alone == 0) | (branch == decider))
                lane = (((branch * targets + target) * heads + head) * most + row).to(tl.int64)
                value = tl.maximum(value, tl.load(probability_ptr + lane * search + token, mask=ok & votes, other=0.0))
            total += value
    score = total / (count * heads).to(tl.float32)
    # NaN has no rank, and a place that nobody takes would send the gather astray: it comes last instead. The NaN
    # itself lives on in the tokens and is found in the result.
    return tl.where(score != score, -1.0, score)


@triton.jit
def _rank_kernel(
    probability_ptr,  # [S, B, H, most, L] float32
    counts_ptr,  # [B] int32
    present_ptr,  # [S, B] int32
    positions_ptr,  # [S, B, L] int32: raster positions of the current tokens
    scores_ptr,  # [S, B, L] float32
    index_ptr,  # [S, B, K] int32
    kept_ptr,  # [S, B, K] int32
    rows_ptr,  # [S, B, T + K] int32
    place_ptr,  # [S, B, all_search] int32
    targets,
    heads,
    most,
    search,
    keep,
    template,
    all_search,
    BRANCHES: tl.constexpr,
    TOGETHER: tl.constexpr,
    ALL: tl.constexpr,  # search rounded up to a power of two
    SOME: tl.constexpr,
    TEMPLATE: tl.constexpr,  # template rounded up to a power of two
    OVERLAP: tl.constexpr,
):
    """Rank some of the tokens of one target; one decision for all branches, or of one branch."""
    await_producer(OVERLAP)
    part, target, decider = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    count = tl.load(counts_ptr + target)
    other, mine = tl.arange(0, ALL), part * SOME + tl.arange(0, SOME)
    ok_other, ok_mine = other < search, mine < search
    others = _scores(
        probability_ptr, present_ptr, target, decider, other, ok_other, count, targets, heads, most, search,
        BRANCHES, TOGETHER,
    )  # fmt: skip
    scores = _scores(
        probability_ptr, present_ptr, target, decider, mine, ok_mine, count, targets, heads, most, search,
        BRANCHES, TOGETHER,
    )  # fmt: skip
    before = (others[None, :] > scores[:, None]) | (
        (others[None, :] == scores[:, None]) & (other[None, :] < mine[:, None])
    )
    rank = tl.sum((before & ok_other[None, :]).to(tl.int32), 1)
    stays = ok_mine & (rank < keep)
    first = tl.arange(0, TEMPLATE)
    for branch in tl.static_range(BRANCHES):
        if TOGETHER or branch == decider:
            at = branch * targets + target
            tl.store(scores_ptr + at * search + mine, scores, mask=ok_mine)
            position = tl.load(positions_ptr + at * search + mine, mask=ok_mine, other=0)
            tl.store(index_ptr + at * keep + rank, mine, mask=stays)
            tl.store(kept_ptr + at * keep + rank, position, mask=stays)
            tl.store(rows_ptr + at * (template + keep) + template + rank, template + mine, mask=stays)
            tl.store(place_ptr + at * all_search + position, tl.where(stays, template + rank, -1), mask=ok_mine)
            tl.store(rows_ptr + at * (template + keep) + first, first, mask=(first < template) & (part == 0))


def new_decision(place: Tensor, *, search: int, keep: int, template: int) -> Decision:
    """Room for a decision that keeps `keep` of `search` tokens, on the device of `place` [S, B, cells]."""

    def new(size: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(*place.shape[:2], size, dtype=dtype, device=place.device)

    return Decision(new(search, torch.float32), new(keep), new(keep), new(template + keep), place)


def decide(
    probabilities: Tensor,
    rows: TemplateRows,
    positions: Tensor,
    keep: int,
    *,
    elimination: Literal["mce", "ce"],
    present: Tensor,
    place: Tensor,
    out: Decision | None = None,
    overlap: bool = False,
) -> Decision:
    """Score and rank the current search tokens.

    Args:
        probabilities: of the attention kernel [S, B, H, rows.most, L] float32.
        rows: template tokens that decide.
        positions: raster positions of the current search tokens [S, B, L] int32.
        keep: how many stay.
        elimination: one decision for all branches, or one each.
        present: [S, B] int32, 0 where a modality is missing.
        place: written to, [S, B, search tokens of the crop] int32; later eliminations go on with it.
        out: written to, from `new_decision`; made if None.
        overlap: see overlap.py.

    Returns:
        `out`.
    """
    branches, targets, heads, most, search = probabilities.shape
    template = rows.slots.shape[1]
    if positions.shape != (branches, targets, search) or positions.dtype != torch.int32:
        raise ValueError(f"positions is {positions.dtype} {tuple(positions.shape)}: expected int32 [S, B, {search}]")
    if not 0 < keep <= search:
        raise ValueError(f"keep={keep}: expected 1 to {search}")
    if present.shape != (branches, targets) or present.dtype != torch.int32:
        raise ValueError(f"present is {present.dtype} {tuple(present.shape)}: expected int32 [{branches}, {targets}]")
    if elimination not in ("mce", "ce"):
        raise ValueError(f"elimination={elimination!r}: known are mce, ce")

    decision = out or new_decision(place, search=search, keep=keep, template=template)
    if decision.place is not place or decision.kept.shape[2] != keep or decision.scores.shape[2] != search:
        raise ValueError(f"out is made for other sizes: expected new_decision(place, {search=}, {keep=}, {template=})")
    together = elimination == "mce"
    some = min(RANKED_ROWS, triton.next_power_of_2(search))
    # One program per part of the tokens, target and decision.
    _rank_kernel[(triton.cdiv(search, some), targets, 1 if together else branches)](
        probabilities,
        rows.counts,
        present,
        positions,
        decision.scores,
        decision.kept_index,
        decision.kept,
        decision.rows,
        place,
        targets,
        heads,
        most,
        search,
        keep,
        template,
        place.shape[2],
        BRANCHES=branches,
        TOGETHER=together,
        ALL=triton.next_power_of_2(search),
        SOME=some,
        TEMPLATE=triton.next_power_of_2(template),
        OVERLAP=overlap,
        num_warps=8 if search > 128 else 4,
        **launch_options(overlap=overlap),
    )
    return decision


@triton.jit
def _gather_kernel(
    x_ptr,  # [S * B, N, C]
    rows_ptr,  # [S * B, M] int32
    out_ptr,  # [S * B, M, C]
    tokens,
    kept,
    channels,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Copy some rows of one branch and target."""
    part, which = tl.program_id(0), tl.program_id(1)
    row = part * ROWS + tl.arange(0, ROWS)
    source = tl.load(rows_ptr + which * kept + row, mask=row < kept, other=0)
    for start in range(0, channels, WIDTH):
        channel = start + tl.arange(0, WIDTH)
        ok = (row < kept)[:, None] & (channel < channels)[None, :]
        x_at = (which.to(tl.int64) * tokens + source)[:, None] * channels + channel[None, :]
        out_at = (which.to(tl.int64) * kept + row)[:, None] * channels + channel[None, :]
        tl.store(out_ptr + out_at, tl.load(x_ptr + x_at, mask=ok, other=0.0), mask=ok)


def gather(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of x [S, B, N, C] by an index [S, B, M] int32 -> [S, B, M, C]."""
    branches, targets, tokens, channels = x.shape
    kept = rows.shape[2]
    out = torch.empty(branches, targets, kept, channels, dtype=x.dtype, device=x.device)
    # One program per 32 rows of one branch and target.
    _gather_kernel[(triton.cdiv(kept, 32), branches * targets)](
        x, rows, out, tokens, kept, channels, ROWS=32, WIDTH=128, num_warps=4
    )
    return out


@dataclass(frozen=True)
class AttendedAndKept:
    """Attention output of the tokens that stay [S, B, T + K, H * D], and the decision."""

    attended: Tensor
    decision: Decision


def attend_score_gather(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rows: TemplateRows,
    positions: Tensor,
    keep: int,
    elimination: Literal["mce", "ce"] = "mce",
    present: Tensor | None = None,
    place: Tensor | None = None,
    tile_rows: int = 64,
    tile_keys: int = 64,
) -> AttendedAndKept:
    """Attention of all branches, max of the softmaxes, mean over deciding rows and heads, top-k, gather.

    Args:
        q, k, v: [S, B, H, N, D] with equal strides; the first T tokens are the template.
        rows: template tokens that decide; T = rows.slots.shape[1].
        positions: raster positions of the N - T search tokens [S, B, N - T] int32.
        keep: how many search tokens stay.
        elimination: "mce" for one decision, "ce" for one per branch.
        present: [S, B] int32, 0 where a modality is missing; None: all are there.
        place: see `Decision`; made for N - T positions if None.
        tile_rows, tile_keys: sizes of the attention's tiles.
    """
    branches, targets, heads, tokens, _ = q.shape
    template = rows.slots.shape[1]
    probabilities = torch.empty(branches, targets, heads, rows.most, tokens - template, device=q.device)
    out = attention(
        q, k, v, rows=rows, probabilities=probabilities, template_tokens=template, tile_rows=tile_rows,
        tile_keys=tile_keys,
    )  # fmt: skip
    if present is None:
        present = torch.ones(branches, targets, dtype=torch.int32, device=q.device)
    if place is None:
        place = torch.empty(branches, targets, tokens - template, dtype=torch.int32, device=q.device)
    decision = decide(probabilities, rows, positions, keep, elimination=elimination, present=present, place=place)
    return AttendedAndKept(gather(out, decision.rows), decision)
