"""Training: recipes, samples, batches, the run itself, its checkpoints and logs.

Reading order: config (what a run computes), recipes, samples and rendering (where pairs come from), batches,
first_weights, distillation, stage (one step), trainer (the run), run_weights, checkpoints, processes, logs.
"""

from .config import TrainConfig
from .processes import Process, this_process
from .recipes import RECIPES, config_from_file, recipe
from .trainer import Progress, Trained, Trainer

__all__ = [
    "RECIPES",
    "Process",
    "Progress",
    "TrainConfig",
    "Trained",
    "Trainer",
    "config_from_file",
    "recipe",
    "this_process",
]
