"""Training: recipes, samples, batches, the run itself, its checkpoints and logs.

Reading order: config (what a run computes), recipes, samples and rendering (where pairs come from), batches,
distillation, model, trainer, checkpoints, processes, logs. Names are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import TrainConfig, config_from_file
    from .processes import Place, find_place
    from .recipes import RECIPES, recipe
    from .trainer import Progress, Trained, Trainer

_HOMES = {
    "RECIPES": "recipes",
    "Place": "processes",
    "Progress": "trainer",
    "TrainConfig": "config",
    "Trained": "trainer",
    "Trainer": "trainer",
    "config_from_file": "config",
    "find_place": "processes",
    "recipe": "recipes",
}

__all__ = [
    "RECIPES",
    "Place",
    "Progress",
    "TrainConfig",
    "Trained",
    "Trainer",
    "config_from_file",
    "find_place",
    "recipe",
]


def __getattr__(name: str) -> object:
    """Import a name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ckd_fast.training' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
