"""Programs that wait for nobody and yet come in order: the last to count itself sees what the others wrote before.

ttsem executes programs one after the other, and where two of them touch one address it tells a race unless both count
there or both load. With `split_k`, programs of a tile write their parts and count themselves (`kernels/linear.py`); the
one that arrives last reads all parts. The count orders these accesses on every schedule. This plugin of pytest, which
`bench/semantics.py` loads, lets ttsem look for races with that order, and no other, taken into account.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from numpy.typing import NDArray

# An access as ttsem logs it: program, kind (r, w, a: atomic, s: a store that changes nothing), operation, addresses ...
Entry = tuple[Any, str, str, NDArray[Any], int, Any]
Find = Callable[[Sequence[Entry] | None], Any]


def find_in_order(find: Find, log: Sequence[Entry] | None) -> Any:
    """What `find` finds in a log, without pairs of accesses that a count orders: one before its program counts itself,
    the other after the last program has."""
    counted = {} if log is None else _counted(log)
    if log is None or not counted:
        return find(log)
    last = {counter: program for program, (counter, _) in counted.items()}  # in the order in which they counted

    def after(index: int, program: Hashable) -> bool:
        return program in counted and index > counted[program][1]

    def late(index: int, program: Hashable) -> bool:
        return after(index, program) and last[counted[program][0]] == program

    # Pairs before the last has counted; pairs of programs with different counters; pairs after both have counted.
    before = [entry for index, entry in enumerate(log) if not late(index, entry[0])]
    merged = [((counted.get(entry[0], (entry[0],))[0]), *entry[1:]) for entry in log]
    behind = [entry for index, entry in enumerate(log) if after(index, entry[0])]
    return find(before) or find(merged) or find(behind)


def _counted(log: Sequence[Entry]) -> dict[Hashable, tuple[Hashable, int]]:
    """Each program's counter and the index at which it counted itself, in that order; empty if a program of the log
    has atomic accesses of another kind: several, or to several addresses."""
    found: dict[Hashable, tuple[Hashable, int]] = {}
    for index, (program, kind, _, addresses, *_) in enumerate(log):
        if kind == "a":
            if program in found or len(addresses) != 1:
                return {}
            found[program] = ("counter", int(addresses[0])), index
    return found


def pytest_configure() -> None:
    from ttsem import pidraces

    find = pidraces.find_race
    pidraces.find_race = lambda log: find_in_order(find, log)
