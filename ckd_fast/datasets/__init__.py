"""Where sequences come from: readers of the published layouts, own folders, and the generator of synthetic clips."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .sequences import DATASETS, Dataset, FrameFiles, SequenceFiles, open_dataset

if TYPE_CHECKING:
    from .synthetic import ClipConfig, SyntheticClip, SyntheticFrame

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
    """The generator on first use: it needs torch, the readers do not."""
    if name in ("ClipConfig", "SyntheticClip", "SyntheticFrame"):
        from . import synthetic

        return getattr(synthetic, name)
    raise AttributeError(f"module 'ckd_fast.datasets' has no attribute {name!r}")
