"""Which accesses of programs that count themselves are races."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from arrivals import Entry, find_in_order

COUNT, OTHER, PART_0, PART_1, OUT = 100, 200, 1, 2, 3


def log(*accesses: tuple[str, str, int]) -> list[Entry]:
    return [(program, kind, "", np.array([address]), 4, None) for program, kind, address in accesses]


def find(entries: Sequence[Entry] | None) -> tuple[object, object, int] | None:
    """The first two programs that touch an address, if they do not both load or both count."""
    for (one, kind, _, at, *_), (other, another, _, where, *_) in combinations(entries or (), 2):
        if one != other and at == where and kind + another not in ("rr", "aa"):
            return one, other, int(at[0])
    return None


SUMMED = (
    ("p0", "w", PART_0), ("p0", "a", COUNT), ("p1", "w", PART_1), ("p1", "a", COUNT), ("p1", "r", PART_0),
    ("p1", "r", PART_1), ("p1", "w", COUNT), ("p1", "w", OUT),
)  # fmt: skip
ANOTHER_TILE = (("q0", "a", OTHER), ("q1", "a", OTHER))


@pytest.mark.parametrize(("accesses", "race"), [
    (SUMMED, None),
    ((*SUMMED, *ANOTHER_TILE), None),
    # the first to arrive reads what the other has yet to write
    ((*SUMMED[:2], ("p0", "r", PART_1), *SUMMED[2:]), ("p0", "p1", PART_1)),
    # a part is written behind the count
    ((("p0", "a", COUNT), ("p0", "w", PART_0), *SUMMED[2:]), ("p0", "p1", PART_0)),
    # both parts in one place
    ((("p0", "w", PART_0), ("p0", "a", COUNT), ("p1", "w", PART_0), ("p1", "a", COUNT)), ("p0", "p1", PART_0)),
    # two tiles write one result
    ((*SUMMED, *ANOTHER_TILE, ("q1", "w", OUT)), (("counter", COUNT), ("counter", OTHER), OUT)),
    # nobody counts
    ((("p0", "w", PART_0), ("p1", "r", PART_0)), ("p0", "p1", PART_0)),
    # a second counter may order other things
    ((*SUMMED, ("p1", "a", OTHER)), ("p0", "p1", PART_0)),
])  # fmt: skip
def test_races(accesses: tuple[tuple[str, str, int], ...], race: object) -> None:
    assert find_in_order(find, log(*accesses)) == race


def test_no_log() -> None:
    assert find_in_order(find, None) is None
