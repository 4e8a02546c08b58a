"""Where sequences come from: readers of the published layouts, own folders, and the generator of synthetic clips.

Names are imported on first use: the layouts' names need nothing, the readers numpy, the generator torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .layouts import DATASETS
    from .sequences import Dataset, FrameFiles, SequenceFiles, open_dataset
    from .synthetic import ClipConfig, SyntheticClip, SyntheticFrame

_HOMES = {
    "DATASETS": "layouts",
    "ClipConfig": "synthetic",
    "Dataset": "sequences",
    "FrameFiles": "sequences",
    "SequenceFiles": "sequences",
    "SyntheticClip": "synthetic",
    "SyntheticFrame": "synthetic",
    "open_dataset": "sequences",
}

__all__ = [
    "DATASETS",
    "ClipConfig",
    "Dataset",
    "FrameFiles",
    "SequenceFiles",
    "SyntheticClip",
    "SyntheticFrame",
    "open_dataset",
]


def __getattr__(name: str) -> object:
    """Import a name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ckd_fast.datasets' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
