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
    "EngineError": "ckd_fast.errors",
    "InputError": "ckd_fast.errors",
    "LoadedModel": "ckd_fast.weights",
    "MissingModelError": "ckd_fast.errors",
    "ModelConfig": "ckd_fast.reference.config",
    "MultiTracker": "ckd_fast.multi",
    "NotInitialisedError": "ckd_fast.errors",
    "OutputError": "ckd_fast.errors",
    "PRESETS": "ckd_fast.reference.config",
    "Pending": "ckd_fast.pending",
    "ScoringOptions": "ckd_fast.evaluation",
    "Timings": "ckd_fast.types",
    "TrackResult": "ckd_fast.types",
    "Tracker": "ckd_fast.tracker",
    "TrackerConfig": "ckd_fast.config",
    "TrainingError": "ckd_fast.errors",
    "WeightsError": "ckd_fast.errors",
    "WeightsMismatchError": "ckd_fast.errors",
    "evaluate": "ckd_fast.evaluation",
    "load_model": "ckd_fast.weights",
    "open_dataset": "ckd_fast.datasets",
    "save_model": "ckd_fast.weights",
}

__all__ = [
    "PRESETS",
    "CkdFastError",
    "CorruptWeightsError",
    "EngineError",
    "InputError",
    "LoadedModel",
    "MissingModelError",
    "ModelConfig",
    "MultiTracker",
    "NotInitialisedError",
    "OutputError",
    "Pending",
    "ScoringOptions",
    "Timings",
    "TrackResult",
    "Tracker",
    "TrackerConfig",
    "TrainingError",
    "WeightsError",
    "WeightsMismatchError",
    "__version__",
    "evaluate",
    "load_model",
    "open_dataset",
    "save_model",
]

if TYPE_CHECKING:
    from .config import TrackerConfig
    from .datasets import open_dataset
    from .errors import (
        CkdFastError,
        CorruptWeightsError,
        EngineError,
        InputError,
        MissingModelError,
        NotInitialisedError,
        OutputError,
        TrainingError,
        WeightsError,
        WeightsMismatchError,
    )
    from .evaluation import ScoringOptions, evaluate
    from .multi import MultiTracker
    from .pending import Pending
    from .reference.config import PRESETS, ModelConfig
    from .tracker import Tracker
    from .types import Timings, TrackResult
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
