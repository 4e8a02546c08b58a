"""Decides on the device which search tokens stay. `attend_score_gather` is attention, decision and gather in one.

From the attention kernel's rows p[s, b, h, r, l] (probabilities of the deciding template tokens r over the L current
search tokens, softmax over all keys):

    score[b, l] = mean over h of mean over r of max over s of p[s, b, h, r, l]       "mce"; "ce": s decides for itself
    rank[l]     = #{j : score[j] > score[l], or score[j] = score[l] and j < l}       a stable descending sort
    kept_index[rank[l]] = l   where rank[l] < K

Joins across programs. A score needs the rows of both branches and all heads, which different programs of the attention
kernel wrote. A rank needs all scores. The first join is the boundary between the two launches, so the host never waits.
The second needs none: each program of the ranking launch ranks some tokens but computes all scores itself, which costs
a few kilobytes of reading. Every program does the same operations in the same order for every token, so equal scores
are equal everywhere.

A frame has no separate gather: the next linear layer reads its input through `token_index` and so skips what was
dropped. Only `attend_score_gather` ends with a gather.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import DecidingTokens, attention
from .launch import SETTINGS, Launch, LaunchSettings, Operation, Room, check, fresh_room
from .overlap import await_producer

RANKED_TOKENS = 32  # by a program
# Probabilities of a branch that a program of the ranking launch loads at once: 32 values in each of 256 threads.
MOST_LINES, LOADED_AT_ONCE = 32, 8192


@dataclass(frozen=True)
class Decision:
    """Which search tokens stay, for S branches and B targets; all on the device."""

    scores: Tensor  # of the current search tokens [S, B, L] float32
    kept_index: Tensor  # indices of the kept ones among them, best first [S, B, K] int32
    kept: Tensor  # their cells of the search grid [S, B, K] int32
    token_index: Tensor  # index of each token that stays in the current sequence, template first [S, B, T + K] int32
    token_of_cell: Tensor  # for each cell its token in the new sequence, -1 if it was dropped [S, B, cells] int32


@triton.jit
def _scores(
    probability_ptr, present_ptr, target, decider, token, ok, count, targets,
    SEARCH: tl.constexpr, BRANCHES: tl.constexpr, TOGETHER: tl.constexpr, HEADS: tl.constexpr, MOST: tl.constexpr,
    LINES: tl.constexpr,
):  # fmt: skip
    """Scores of all tokens: the sum over heads and rows of the maximum over branches, or of one branch."""
    alone = 0
    if not TOGETHER:
        alone = tl.load(present_ptr + decider * targets + target)
    # A line is a row of a head. Lines are loaded side by side, so that one wait covers many of them.
    total = tl.zeros((LINES, token.shape[0]), tl.float32)
    lines = HEADS * count
    for start in range(0, lines, LINES):
        line = start + tl.arange(0, LINES)
        at = ((line // count * MOST + line % count) * SEARCH)[:, None] + token[None, :]
        value = tl.zeros(total.shape, tl.float32)
        for branch in tl.static_range(BRANCHES):
            # A missing modality has no vote; a branch that decides alone listens to itself if it is there.
            votes = tl.load(present_ptr + branch * targets + target) != 0
            if not TOGETHER:
                votes = votes & ((alone == 0) | (branch == decider))
            base = probability_ptr + (branch * targets + target).to(tl.int64) * (HEADS * MOST * SEARCH)
            vote = tl.load(base + at, mask=(line < lines)[:, None] & ok[None, :] & votes, other=0.0)
            value = tl.maximum(value, vote, propagate_nan=tl.PropagateNan.ALL)
        total += value
    score = tl.sum(total, 0) / lines.to(tl.float32)
    # NaN has no rank, and a rank that no token takes would leave a hole in the index. So NaN comes last. It stays in
    # the tokens, and is found in the result.
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
    token_index_ptr,  # [S, B, T + K] int32
    token_of_cell_ptr,  # [S, B, cells] int32
    targets,  # B
    cells,  # of the search grid
    SEARCH: tl.constexpr,  # L, current search tokens
    KEEP: tl.constexpr,  # K of them that stay
    TEMPLATE: tl.constexpr,  # T
    BRANCHES: tl.constexpr,
    TOGETHER: tl.constexpr,  # one decision for all branches
    HEADS: tl.constexpr,  # H
    MOST: tl.constexpr,  # rows that the probabilities have room for
    LINES: tl.constexpr,  # rows of heads that are loaded at once
    ALL: tl.constexpr,  # search rounded up to a power of two
    SOME: tl.constexpr,  # tokens that a program ranks
    FIRST: tl.constexpr,  # template rounded up to a power of two
    OVERLAP: tl.constexpr,
):
    """Rank some of the tokens of one target; one decision for all branches, or of one branch."""
    await_producer(OVERLAP)
    part, target, decider = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    count = tl.load(counts_ptr + target)
    other, mine = tl.arange(0, ALL), part * SOME + tl.arange(0, SOME)
    ok_other, ok_mine = other < SEARCH, mine < SEARCH
    others = _scores(
        probability_ptr, present_ptr, target, decider, other, ok_other, count, targets,
        SEARCH, BRANCHES, TOGETHER, HEADS, MOST, LINES,
    )  # fmt: skip
    scores = tl.gather(others, mine, 0)
    before = (others[None, :] > scores[:, None]) | (
        (others[None, :] == scores[:, None]) & (other[None, :] < mine[:, None])
    )
    rank = tl.sum((before & ok_other[None, :]).to(tl.int32), 1)
    stays = ok_mine & (rank < KEEP)
    first = tl.arange(0, FIRST)
    for branch in tl.static_range(BRANCHES):
        if TOGETHER or branch == decider:
            at = branch * targets + target
            tl.store(scores_ptr + at * SEARCH + mine, scores, mask=ok_mine)
            position = tl.load(positions_ptr + at * SEARCH + mine, mask=ok_mine, other=0)
            tl.store(index_ptr + at * KEEP + rank, mine, mask=stays)
            tl.store(kept_ptr + at * KEEP + rank, position, mask=stays)
            tl.store(token_index_ptr + at * (TEMPLATE + KEEP) + TEMPLATE + rank, TEMPLATE + mine, mask=stays)
            tl.store(token_of_cell_ptr + at * cells + position, tl.where(stays, TEMPLATE + rank, -1), mask=ok_mine)
            tl.store(token_index_ptr + at * (TEMPLATE + KEEP) + first, first, mask=(first < TEMPLATE) & (part == 0))


def decide(
    probabilities: Tensor,
    deciding: DecidingTokens,
    positions: Tensor,
    keep: int,
    *,
    elimination: Literal["mce", "ce"],
    present: Tensor,
    token_of_cell: Tensor,
    room: Room | None = None,
    settings: LaunchSettings = SETTINGS,
) -> Operation[Decision]:
    """Score and rank the current search tokens.

    Args:
        probabilities: of the attention kernel [S, B, H, deciding.most, L] float32.
        deciding: template tokens that decide.
        positions: cells of the current search tokens [S, B, L] int32.
        keep: how many stay.
        elimination: "mce": one decision for all branches; "ce": one for each.
        present: [S, B] int32, 0 where a modality is missing.
        token_of_cell: updated, see `Decision`; later eliminations update it again.
        room: for the other fields of the decision, by their names.
        settings: of all launches.
    """
    branches, targets, heads, most, search = probabilities.shape
    template = deciding.order.shape[1]
    check("positions", positions, torch.int32, (branches, targets, search))
    check("present", present, torch.int32, (branches, targets))
    check("token_of_cell", token_of_cell, torch.int32, (branches, targets, token_of_cell.shape[-1]))
    if not 0 < keep <= search:
        raise ValueError(f"keep={keep}: expected 1 to {search}")
    if elimination not in ("mce", "ce"):
        raise ValueError(f"elimination={elimination!r}: known are mce, ce")
    room = room or fresh_room(probabilities.device)

    def made(name: str, size: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return room(name, (branches, targets, size), dtype)

    decision = Decision(
        scores=made("scores", search, torch.float32),
        kept_index=made("kept_index", keep),
        kept=made("kept", keep),
        token_index=made("token_index", template + keep),
        token_of_cell=token_of_cell,
    )
    together = elimination == "mce"
    every = triton.next_power_of_2(search)
    some = min(RANKED_TOKENS, every)
    lines = max(1, min(MOST_LINES, LOADED_AT_ONCE // every, triton.next_power_of_2(heads * most)))
    launch = Launch(
        name="rank",
        what=f"{keep} of {search}, {elimination}",
        kernel=_rank_kernel,
        # One program per part of the tokens, target and decision.
        grid=(triton.cdiv(search, some), targets, 1 if together else branches),
        arguments={
            "probability_ptr": probabilities,
            "counts_ptr": deciding.counts,
            "present_ptr": present,
            "positions_ptr": positions,
            "scores_ptr": decision.scores,
            "index_ptr": decision.kept_index,
            "kept_ptr": decision.kept,
            "token_index_ptr": decision.token_index,
            "token_of_cell_ptr": token_of_cell,
            "targets": targets,
            "cells": token_of_cell.shape[2],
            "SEARCH": search,
            "KEEP": keep,
            "TEMPLATE": template,
            "BRANCHES": branches,
            "TOGETHER": together,
            "HEADS": heads,
            "MOST": most,
            "LINES": lines,
            "ALL": every,
            "SOME": some,
            "FIRST": triton.next_power_of_2(template),
            "OVERLAP": settings.overlap,
        },
        options={"num_warps": 8, **settings.options},
        reads=(probabilities, deciding.counts, present, positions),
        writes=(decision.scores, decision.kept_index, decision.kept, decision.token_index, token_of_cell),
        flops=float(targets * search**2),
        round_trips=triton.cdiv(heads * most, lines),
    )
    return Operation(decision, (launch,))


@triton.jit
def _gather_kernel(
    x_ptr,  # [S * B, N, C]
    token_index_ptr,  # [S * B, M] int32
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
    source = tl.load(token_index_ptr + which * kept + row, mask=row < kept, other=0)
    for start in range(0, channels, WIDTH):
        channel = start + tl.arange(0, WIDTH)
        ok = (row < kept)[:, None] & (channel < channels)[None, :]
        x_at = (which.to(tl.int64) * tokens + source)[:, None] * channels + channel[None, :]
        out_at = (which.to(tl.int64) * kept + row)[:, None] * channels + channel[None, :]
        tl.store(out_ptr + out_at, tl.load(x_ptr + x_at, mask=ok, other=0.0), mask=ok)


def gather(x: Tensor, token_index: Tensor, room: Room | None = None) -> Operation[Tensor]:
    """Tokens of x [S, B, N, C] by an index [S, B, M] int32 -> [S, B, M, C]."""
    branches, targets, tokens, channels = x.shape
    kept = token_index.shape[2]
    out = (room or fresh_room(x.device))("gathered", (branches, targets, kept, channels), x.dtype)
    launch = Launch(
        name="gather",
        what=f"{kept} of {tokens}",
        kernel=_gather_kernel,
        # One program per 32 tokens of one branch and target.
        grid=(triton.cdiv(kept, 32), branches * targets),
        arguments={
            "x_ptr": x, "token_index_ptr": token_index, "out_ptr": out, "tokens": tokens, "kept": kept,
            "channels": channels, "ROWS": 32, "WIDTH": 128,
        },
        options={"num_warps": 4},
        reads=(x, token_index),
        writes=(out,),
        flops=0.0,
    )  # fmt: skip
    return Operation(out, (launch,))


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
    deciding: DecidingTokens,
    positions: Tensor,
    keep: int,
    elimination: Literal["mce", "ce"] = "mce",
    present: Tensor | None = None,
    settings: LaunchSettings = SETTINGS,
) -> Operation[AttendedAndKept]:
    """Attention of all branches, max of the softmaxes, mean over deciding rows and heads, top-k, gather.

    Args:
        q, k, v: [S, B, H, N, D] with equal strides; the first T tokens are the template.
        deciding: template tokens that decide; T = deciding.order.shape[1].
        positions: cells of the N - T search tokens [S, B, N - T] int32.
        keep: how many search tokens stay.
        elimination: "mce" for one decision, "ce" for one per branch.
        present: [S, B] int32, 0 where a modality is missing; None: all are there.
        settings: of all launches.
    """
    branches, targets, _, tokens, _ = q.shape
    search = tokens - deciding.order.shape[1]
    attended = attention(q, k, v, deciding=deciding, settings=settings)
    if attended.out.probabilities is None:
        raise ValueError("no template token decides")
    if present is None:
        present = torch.ones(branches, targets, dtype=torch.int32, device=q.device)
    decided = decide(
        attended.out.probabilities, deciding, positions, keep, elimination=elimination, present=present,
        token_of_cell=torch.empty(branches, targets, search, dtype=torch.int32, device=q.device), settings=settings,
    )  # fmt: skip
    gathered = gather(attended.out.tokens, decided.out.token_index)
    launches = (*attended.launches, *decided.launches, *gathered.launches)
    return Operation(AttendedAndKept(gathered.out, decided.out), launches)
