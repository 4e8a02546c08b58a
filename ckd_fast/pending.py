"""Results that may not be there yet: `Pending`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Pending(Generic[T]):
    """A result that may not be there yet.

    `result()` waits for it; asked again, it gives the same value or raises the same error. Any thread may ask. A wait
    that is interrupted from the keyboard can be taken up again.

    Args:
        wait: returns the result when it is there. Called once, then dropped: it may hold frames or a device's memory.
    """

    def __init__(self, wait: Callable[[], T]) -> None:
        self._wait: Callable[[], T] | None = wait
        self._lock = threading.RLock()
        self._value: T
        self._error: Exception | None = None

    @classmethod
    def of(cls, value: T) -> Pending[T]:
        """A result that is there already."""
        pending = cls(lambda: value)
        pending._value, pending._wait = value, None
        return pending

    def result(self) -> T:
        """The result, as soon as it is there."""
        with self._lock:
            if self._wait is not None:
                try:
                    self._value = self._wait()
                except Exception as error:  # noqa: BLE001 - raised below, now and whenever asked again
                    self._error = error
                self._wait = None
            if self._error is not None:
                raise self._error
            return self._value
