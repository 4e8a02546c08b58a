"""ckd_fast: RGB-thermal single-object tracking.

`import ckd_fast` is light: torch, triton, OpenCV and numpy are imported when a name that needs them is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .config import TrackerConfig
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
from .pending import Pending
from .reference.config import PRESETS, ModelConfig
from .types import Timings, TrackResult

# Names whose modules import torch or numpy. Type checkers see the imports, Python looks into the table.
if TYPE_CHECKING:
    from .datasets import open_dataset as open_dataset
    from .evaluation import ScoringOptions as ScoringOptions
    from .evaluation import evaluate as evaluate
    from .multi import MultiTracker as MultiTracker
    from .tracker import Tracker as Tracker
    from .weights import LoadedModel as LoadedModel
    from .weights import load_model as load_model
    from .weights import save_model as save_model

_HOMES = {
    "LoadedModel": "weights",
    "MultiTracker": "multi",
    "ScoringOptions": "evaluation",
    "Tracker": "tracker",
    "evaluate": "evaluation",
    "load_model": "weights",
    "open_dataset": "datasets",
    "save_model": "weights",
}

__version__ = "0.1.0"
__all__ = [
    "PRESETS",
    "CkdFastError",
    "CorruptWeightsError",
    "EngineError",
    "InputError",
    "MissingModelError",
    "ModelConfig",
    "NotInitialisedError",
    "OutputError",
    "Pending",
    "Timings",
    "TrackResult",
    "TrackerConfig",
    "TrainingError",
    "WeightsError",
    "WeightsMismatchError",
    "__version__",
]
__all__ += list(_HOMES)


def __getattr__(name: str) -> object:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ckd_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted(__all__)
