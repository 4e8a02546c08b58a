"""ckd_fast: RGB-thermal single-object tracking.

`import ckd_fast` is light: torch, triton, OpenCV and numpy are imported when a name that needs them is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Public name -> module that defines it.
_HOMES = {
    "CkdFastError": "ckd_fast.errors",
    "CorruptWeightsError": "ckd_fast.errors",
    "InputError": "ckd_fast.errors",
    "LoadedModel": "ckd_fast.weights",
    "MissingModelError": "ckd_fast.errors",
    "ModelConfig": "ckd_fast.reference.config",
    "OutputError": "ckd_fast.errors",
    "PRESETS": "ckd_fast.reference.config",
    "WeightsError": "ckd_fast.errors",
    "WeightsMismatchError": "ckd_fast.errors",
    "load_model": "ckd_fast.weights",
    "save_model": "ckd_fast.weights",
}

__all__ = [
    "PRESETS",
    "CkdFastError",
    "CorruptWeightsError",
    "InputError",
    "LoadedModel",
    "MissingModelError",
    "ModelConfig",
    "OutputError",
    "WeightsError",
    "WeightsMismatchError",
    "__version__",
    "load_model",
    "save_model",
]

if TYPE_CHECKING:
    from .errors import (
        CkdFastError,
        CorruptWeightsError,
        InputError,
        MissingModelError,
        OutputError,
        WeightsError,
        WeightsMismatchError,
    )
    from .reference.config import PRESETS, ModelConfig
    from .weights import LoadedModel, load_model, save_model


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ckd_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted(__all__)
