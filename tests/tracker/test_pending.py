"""A result for later: waited for once, the same to everyone."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from ckd_fast.pending import Pending


def test_many_threads_wait_once_and_get_the_same() -> None:
    released, calls, found = threading.Event(), [], []

    def wait() -> object:
        calls.append(1)
        released.wait()
        return object()

    pending = Pending(wait)
    threads = [threading.Thread(target=lambda: found.append(pending.result())) for _ in range(4)]
    for thread in threads:
        thread.start()
    released.set()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(found) == 4
    assert len(set(map(id, found))) == 1


def test_an_error_is_raised_again() -> None:
    calls = []
    pending = Pending(lambda: calls.append(1) or {}["missing"])
    errors = []
    for _ in range(2):
        with pytest.raises(KeyError, match="missing") as caught:
            pending.result()
        errors.append(caught.value)
    assert errors[0] is errors[1]
    assert len(calls) == 1


def test_an_interrupted_wait_is_not_a_result() -> None:
    answers = iter([KeyboardInterrupt(), None])

    def wait() -> int:
        answer = next(answers)
        if answer is not None:
            raise answer
        return 7

    pending = Pending(wait)
    with pytest.raises(KeyboardInterrupt):
        pending.result()
    assert pending.result() == 7


def test_what_was_waited_with_is_let_go() -> None:
    class Memory:
        def read(self) -> int:
            return 3

    memory = Memory()
    held = weakref.ref(memory)
    pending = Pending(memory.read)
    del memory
    gc.collect()
    assert held() is not None
    assert pending.result() == 3
    gc.collect()
    assert held() is None
    assert pending.result() == 3


def test_a_result_that_is_there() -> None:
    assert Pending.of(None).result() is None
