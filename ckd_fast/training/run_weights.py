"""The weights of a run: the model that learns, their running mean, and both by the names of our files.

In our files the student's names have no prefix and the teachers' begin with `teacher_`; in a `Trainee` the student's
begin with `student.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ckd_fast.errors import InputError
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.model import Trainee
from ckd_fast.weights import LoadedModel, Provenance
from ckd_fast.weights.load import expected_shapes

STUDENT = "student."
TEACHER = "teacher_"


class RunningMean:
    """Exponential mean of weights and statistics.

    The decay grows from zero to `decay`, so the first weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.values = {n: v.detach().clone() for n, v in model.state_dict().items() if v.is_floating_point()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after a step, counted from zero over all stages."""
        decay = min(self._decay, (1 + step) / (10 + step))
        state = model.state_dict()
        torch._foreach_lerp_(list(self.values.values()), [state[name] for name in self.values], 1 - decay)


@dataclass(frozen=True)
class RunWeights:
    """The model that learns, and the running mean of its weights if the run keeps one."""

    model: Trainee
    mean: RunningMean | None

    def learned(self, config: ModelConfig) -> LoadedModel:
        """Students and teachers as they are, for a checkpoint."""
        return _as_loaded(stored_weights(self.model), config)

    def averaged(self, config: ModelConfig) -> LoadedModel | None:
        """Their running mean, for a checkpoint."""
        if self.mean is None:
            return None
        values = self.mean.values
        return _as_loaded({n.removeprefix(STUDENT): values[n] for n in expected_shapes(self.model)}, config)

    def student(self, config: ModelConfig) -> LoadedModel:
        """The student as it would be shipped now: of the running mean if there is one."""
        best = self.averaged(config) or self.learned(config)
        return LoadedModel(config, best.weights, {}, Provenance("training", "trained by ckd-fast train"))


def trainee_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the names of our files to those of a `Trainee`."""
    return {name if name.startswith(TEACHER) else STUDENT + name: value for name, value in weights.items()}


def stored_weights(trainee: Trainee) -> dict[str, Tensor]:
    """All weights and statistics by the names of our files."""
    state = trainee.state_dict()
    return {name.removeprefix(STUDENT): state[name].detach() for name in expected_shapes(trainee)}


def load_weights(trainee: Trainee, weights: Mapping[str, Tensor]) -> None:
    """Copy weights under a `Trainee`'s names into it; every one must be there."""
    state, known = trainee.state_dict(), expected_shapes(trainee)
    missing = [name for name in known if name not in weights]
    if missing:
        raise InputError(f"{len(missing)} weights are missing, the first is {missing[0]}")
    with torch.no_grad():
        for name in known:
            state[name].copy_(weights[name])


def _as_loaded(weights: Mapping[str, Tensor], config: ModelConfig) -> LoadedModel:
    named = {name: value.detach().float().cpu() for name, value in weights.items()}
    teachers = {name: value for name, value in named.items() if name.startswith(TEACHER)}
    students = {name: value for name, value in named.items() if name not in teachers}
    return LoadedModel(config, students, teachers, Provenance("training", "training checkpoint"))
