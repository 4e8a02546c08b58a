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
from ckd_fast.kernels.layout import STATE
from ckd_fast.kernels.linear import Rows, RowStatistics

from .plan import BRANCHES, Build, Template

FIRST_ROWS = 32


@dataclass(frozen=True, eq=False)
class PooledTarget(Target):
    """A target: its row, and a number that no other target of the engine ever gets."""

    row: int
    number: int


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

    def __init__(self, build: Build, owner: object) -> None:
        self._build = build
        self._owner = owner
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
        rows = len(self._memory.counts)
        larger = self._allocated(2 * rows)
        for new, old in zip(larger.tensors(), self._memory.tensors(), strict=True):
            new[:rows] = old
        self._memory = larger
        self._free.extend(range(rows, 2 * rows))

    @property
    def state(self) -> Tensor:
        """Where the last search of each target ended [rows, STATE] float64; written by `decode`."""
        return self._memory.state

    def add(self) -> PooledTarget:
        """A new target. Its row still has to be filled."""
        row = self._free.popleft()
        target = PooledTarget(self._owner, row, next(self._numbers))
        weakref.finalize(target, self._free.append, row)
        return target

    def template(self, target: PooledTarget) -> Template:
        """A target's part of the pool."""
        memory, row = self._memory, target.row
        statistics = RowStatistics(memory.embedded.moments[row], self._build.patch_tile)
        rows = Rows(memory.embedded.tokens[row], statistics)
        return Template(rows, memory.order[row : row + 1], memory.counts[row : row + 1])

    @property
    def bytes(self) -> int:
        """Device memory."""
        return sum(tensor.nbytes for tensor in self._memory.tensors())
