"""The errors of ckd_fast.

Each is also a ValueError, RuntimeError or FileNotFoundError, so that code that does not know ckd_fast can catch it.
Messages say what was given, what was expected and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence


class CkdFastError(Exception):
    """Base class of all errors that ckd_fast raises."""


class InputError(CkdFastError, ValueError):
    """An argument or an input file is wrong."""


class NotInitialisedError(CkdFastError, RuntimeError):
    """A tracker has no target yet."""


class EngineError(CkdFastError, RuntimeError):
    """This machine lacks what an engine needs."""


class OutputError(CkdFastError, ValueError):
    """A file cannot be written, or would be overwritten."""


class TrainingError(CkdFastError, RuntimeError):
    """A training run cannot continue: its losses or its samples are bad."""


class WeightsError(CkdFastError, ValueError):
    """A weights file cannot be used."""


class MissingModelError(WeightsError, FileNotFoundError):
    """The weights file does not exist, or there is no packaged model."""


class CorruptWeightsError(WeightsError):
    """The file is damaged, hostile, or not a weights file."""


class WeightsMismatchError(WeightsError):
    """The weights file is intact but holds another model."""


def some_names(names: Sequence[str], most: int = 5) -> str:
    """Names for a message: "a, b, c, d, e and 4 more"."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
