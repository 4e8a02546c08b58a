"""The model of a run: where its weights come from, which tokens it drops, and the running mean of its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ckd_fast.errors import InputError
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.model import Trainee, initialise
from ckd_fast.reference.training import keep_ratio_at
from ckd_fast.weights import LoadedModel, Provenance, load_model
from ckd_fast.weights.load import expected_shapes

from .config import Stage, TrainConfig

STUDENT = "student."
BASE_DIM = 768


def initial_trainee(config: TrainConfig) -> Trainee:
    """Student and teachers with their first weights, in training mode."""
    trainee = Trainee(config.model, config.drop_path)
    if config.init == "random":
        initialise(trainee, config.seed)
        _widen(trainee)
        return trainee.train()
    loaded = load_model(config.init, config.model, config.seed)
    weights = dict(loaded.teachers) or teachers_from_student(loaded)
    weights |= {STUDENT + name: value for name, value in loaded.weights.items()}
    load_weights(trainee, weights)
    return trainee.train()


def _widen(trainee: Trainee) -> None:
    """Give the linear layers of a narrow model the gain that normal(0, 0.02) gives ViT-B.

    With 0.02 at 128 channels the attention starts all but uniform and takes long to find anything.
    """
    gain = (BASE_DIM / trainee.config.dim) ** 0.5
    with torch.no_grad():
        for module in trainee.modules():
            if isinstance(module, nn.Linear):
                module.weight *= gain


def teachers_from_student(loaded: LoadedModel) -> dict[str, Tensor]:
    """Teachers for a file that holds a student alone: its branches, and its head with the half that saw the modality.

    That is the inverse of how CKD starts: there, the student's head is the one-modality head side by side twice.
    """
    dim = loaded.config.dim
    weights: dict[str, Tensor] = {}
    for number, modality in enumerate(("rgb", "tir")):
        own = "rgb" if loaded.config.share_students else modality
        for name, value in loaded.weights.items():
            if name.startswith(f"{own}."):
                weights[f"teacher_{modality}.branch.{name.partition('.')[2]}"] = value.clone()
            elif name.startswith("head."):
                half = value[:, number * dim : (number + 1) * dim] if name.endswith(".0.0.weight") else value
                weights[f"teacher_{modality}.{name}"] = half.clone()
    return weights


def stored_weights(trainee: Trainee) -> dict[str, Tensor]:
    """All weights and statistics by the names of our files (the student's without a prefix)."""
    known = expected_shapes(trainee)
    state = trainee.state_dict()
    return {name.removeprefix(STUDENT): state[name].detach() for name in known}


def load_weights(trainee: Trainee, weights: Mapping[str, Tensor]) -> None:
    """Copy weights under the model's own names into it; every one must be there."""
    state = trainee.state_dict()
    known = expected_shapes(trainee)
    missing = [name for name in known if name not in weights]
    if missing:
        raise InputError(f"{len(missing)} weights are missing, the first is {missing[0]}")
    with torch.no_grad():
        for name in known:
            state[name].copy_(weights[name])


def prefixed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the names of our files to those of a `Trainee`."""
    return {name if name.startswith("teacher_") else STUDENT + name: value for name, value in weights.items()}


def set_elimination(trainee: Trainee, config: ModelConfig) -> None:
    """Which tokens are dropped from now on."""
    trainee.config = trainee.student.config = config


def elimination_in(stage: Stage, model: ModelConfig, epoch: int) -> ModelConfig:
    """The model's configuration in an epoch of a stage."""
    if not stage.elimination:
        return dataclasses.replace(model, elimination="none")
    ratio = keep_ratio_at(epoch, stage.eliminate_from, stage.eliminate_fully_at, model.keep_ratio)
    return dataclasses.replace(model, keep_ratio=ratio)


def as_loaded(weights: Mapping[str, Tensor], config: ModelConfig, kind: str) -> LoadedModel:
    """Weights by the names of our files as `load_model` would give them."""
    named = {name: value.detach().float().cpu() for name, value in weights.items()}
    teachers = {name: value for name, value in named.items() if name.startswith("teacher_")}
    students = {name: value for name, value in named.items() if name not in teachers}
    return LoadedModel(config, students, teachers, Provenance("training", kind))


class RunningMean:
    """Exponential mean of weights and statistics. Its decay grows from zero, so the first weights are soon forgotten.

    Args:
        model: the weights that it starts with.
        decay: in the long run.
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
