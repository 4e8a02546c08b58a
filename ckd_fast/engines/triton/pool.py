"""All targets of an engine, on the device: template tokens, which of these decide, and where the last search ended.

A target is a row of the pool. Its row becomes free when the caller drops the `PooledTarget`.
"""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from ckd_fast.engines.base import Target
from ckd_fast.kernels.attention import DecidingTokens
from ckd_fast.kernels.layout import STATE
from ckd_fast.kernels.linear import Rows, RowStatistics

from .plan import BRANCHES, Build

FIRST_ROWS = 32


@dataclass(frozen=True, eq=False)
class PooledTarget(Target):
    """A target: its row, and a number that no other target of the engine ever gets."""

    row: int
    number: int
    pool: TargetPool


@dataclass(frozen=True)
class _Memory:
    """For each row: template tokens [rows, 2, 1, T, C], `DecidingTokens`, and the state of `kernels.layout`."""

    embedded: Rows
    order: Tensor
    counts: Tensor
    state: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return self.embedded.tokens, self.embedded.moments, self.order, self.counts, self.state


class TargetPool:
    """Rows for targets; doubles when it is full."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self._numbers = count()
        self._memory = self._allocated(FIRST_ROWS)
        self._free = deque(range(FIRST_ROWS))

    def _allocated(self, rows: int) -> _Memory:
        template, device = self._build.config.template_tokens, self._build.device
        return _Memory(
            embedded=self._build.embedded(rows, BRANCHES, 1, template),
            order=torch.full((rows, template), -1, dtype=torch.int32, device=device),
            counts=torch.ones(rows, dtype=torch.int32, device=device),
            state=torch.zeros(rows, STATE.value, dtype=torch.float64, device=device),
        )

    @property
    def full(self) -> bool:
        """Whether no row is free."""
        return not self._free

    def grow(self) -> None:
        """Double the rows. Everything moves to new memory, `state` too."""
        before, rows = self._memory, len(self._memory.counts)
        self._memory = self._allocated(2 * rows)
        for new, old in zip(self._memory.tensors(), before.tensors(), strict=True):
            new[:rows] = old
        self._free.extend(range(rows, 2 * rows))

    @property
    def state(self) -> Tensor:
        """Where the last search of each target ended [rows, STATE] float64; written by `decode`."""
        return self._memory.state

    def add(self) -> PooledTarget:
        """A new target. Its row still has to be filled."""
        row = self._free.popleft()
        target = PooledTarget(row, next(self._numbers), self)
        weakref.finalize(target, self._free.append, row)
        return target

    def template(self, target: PooledTarget) -> Rows:
        """A target's template tokens [2, 1, T, C] and their statistics."""
        statistics = RowStatistics(self._memory.embedded.moments[target.row], self._build.patch_tile)
        return Rows(self._memory.embedded.tokens[target.row], statistics)

    def set_deciding(self, target: PooledTarget, deciding: DecidingTokens) -> None:
        """Store which template tokens of a new target decide."""
        self._memory.order[target.row] = deciding.order[0]
        self._memory.counts[target.row] = deciding.counts[0]

    def deciding(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Order and counts of targets' deciding tokens, see `DecidingTokens`."""
        return self._memory.order[rows], self._memory.counts[rows]

    @property
    def bytes(self) -> int:
        """Device memory."""
        return sum(tensor.nbytes for tensor in self._memory.tensors())
