"""The errors of ckd_fast.

CkdFastError
├── InputError                  an argument or a file of the user's is not what it should be
├── NotInitialisedError         a tracker was asked for a target that it was not given
├── EngineError                 the machine lacks what an engine needs
├── OutputError                 something cannot be written, or would be overwritten
├── TrainingError               a training run cannot go on: its numbers or its samples went bad
└── WeightsError                a file of weights cannot be used
    ├── MissingModelError       there is no such file, or no packaged model
    ├── CorruptWeightsError     the file is broken, hostile, or no weights at all
    └── WeightsMismatchError    the file is intact and holds another model

Each is a ValueError, RuntimeError or FileNotFoundError too, whichever fits, so that callers who do not know this
package can still catch it. A message says what was given, what was expected and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence


class CkdFastError(Exception):
    """Everything that ckd_fast raises on purpose."""


class InputError(CkdFastError, ValueError):
    """An argument or a file of the user's is not what it should be."""


class NotInitialisedError(CkdFastError, RuntimeError):
    """A tracker was asked for a target that it was not given."""


class EngineError(CkdFastError, RuntimeError):
    """The machine lacks what an engine needs."""


class OutputError(CkdFastError, ValueError):
    """Something cannot be written, or would be overwritten."""


class TrainingError(CkdFastError, RuntimeError):
    """A training run cannot go on: its numbers or its samples went bad."""


class WeightsError(CkdFastError, ValueError):
    """A file of weights cannot be used."""


class MissingModelError(WeightsError, FileNotFoundError):
    """There is no such file, or no packaged model."""


class CorruptWeightsError(WeightsError):
    """The file is broken, hostile, or no weights at all."""


class WeightsMismatchError(WeightsError):
    """The file is intact and holds another model."""


def some_names(names: Sequence[str], most: int = 5) -> str:
    """Names for a message: "a, b, c, d, e and 4 more"."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
