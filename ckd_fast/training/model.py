"""The model of a run: where its weights come from, which tokens it drops, and the running mean of its weights."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ckd_fast.errors import InputError
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.elimination import template_mask
from ckd_fast.reference.head import HeadMaps, search_features
from ckd_fast.reference.losses import LossConfig, TaskLoss, task_loss
from ckd_fast.reference.model import Trainee, initialise, run_branches
from ckd_fast.reference.training import Losses, keep_ratio_at
from ckd_fast.reference.vit import Block
from ckd_fast.weights import LoadedModel, Provenance, load_model
from ckd_fast.weights.load import expected_shapes

from .config import Stage, TrainConfig

log = logging.getLogger(__name__)
STUDENT = "student."
BASE_DIM = 768


def initial_trainee(config: TrainConfig) -> Trainee:
    """Student and teachers with their first weights, in training mode."""
    trainee = Trainee(config.model, config.drop_path)
    if config.init == "random":
        initialise(trainee, config.seed)
        _widen(trainee)
        _look_for_the_alike(trainee, config.seed)
        return trainee.train()
    loaded = load_model(config.init, config.model, config.seed)
    alone = next((stage.name for stage in config.stages if stage.students_only), None)
    if loaded.teachers and alone is not None:
        log.warning(
            "%s holds teachers; stage %r, in which the student learns alone, replaces them by ones made from it. Leave "
            "that stage out to keep them", config.init, alone,
        )  # fmt: skip
    weights = dict(loaded.teachers) or teachers_from_student(loaded.weights, loaded.config)
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


def _look_for_the_alike(trainee: Trainee, seed: int) -> None:
    """Let attention start by similarity: queries and keys of a head project onto the same random directions.

    A tracker must find what looks like its template. Learned from nothing, that takes many thousand pairs; a q k^T that
    is a similarity from the first step is the "mimetic" start that Trockman and Kolter found for small data
    (arXiv:2305.09828), without their change of values and projections.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in trainee.modules():
            if isinstance(module, Block):
                dim = module.proj.in_features
                queries, keys, _ = module.qkv.weight.chunk(3)
                for head in range(module.heads):
                    rows = slice(head * dim // module.heads, (head + 1) * dim // module.heads)
                    square = torch.randn(dim, dim, generator=generator)
                    alike = torch.linalg.qr(square).Q[: dim // module.heads].to(queries.device)  # orthonormal rows
                    # Normed tokens have C as the square of their norm: at 2, a token's own score stands out clearly.
                    queries[rows] = 0.5 * queries[rows] + 2 * alike
                    keys[rows] = 0.5 * keys[rows] + 2 * alike


class StudentsAlone(nn.Module):
    """The students of a `Trainee` as the trainer runs them in a stage without teachers."""

    def __init__(self, trainee: Trainee) -> None:
        super().__init__()
        self.trainee = trainee

    def forward(
        self, template_images: Tensor, search_images: Tensor, mask: Tensor | None, visible: Tensor | None
    ) -> HeadMaps:
        """Arguments as of `Trainee`; the student's maps."""
        config, student = self.trainee.config, self.trainee.student
        if mask is None:
            mask = template_mask(config, batch=template_images.shape[1]).to(template_images.device)
        template, search = student.embed_template(template_images), student.embed_search(search_images, visible)
        tokens = run_branches(student.branches, template, search, config, mask).tokens
        return student.head(search_features(tokens, config.search_tokens))  # type: ignore[no-any-return]


def students_losses(maps: HeadMaps, target_xywh: Tensor, config: LossConfig) -> Losses:
    """Losses of a batch without teachers; their terms are zero."""
    student = task_loss(maps, target_xywh)
    zero = torch.zeros_like(student.focal.detach())
    none = TaskLoss(zero, zero, zero)
    return Losses(student.total(config), student, none, none, style=zero, content=zero, blocks=())


def freeze_teachers(trainee: Trainee) -> None:
    """Only the students learn."""
    for name, parameter in trainee.named_parameters():
        if name.startswith("teacher_"):
            parameter.requires_grad_(False)  # noqa: FBT003


def teachers_from_student(student: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Teachers for a student that comes without: its branches, and its head with the half that saw the modality.

    Names are those of our files. That is the inverse of how CKD starts: there, the student's head is the one-modality
    head side by side twice.
    """
    dim = config.dim
    weights: dict[str, Tensor] = {}
    for number, modality in enumerate(("rgb", "tir")):
        own = "rgb" if config.share_students else modality
        for name, value in student.items():
            if name.startswith(f"{own}."):
                weights[f"teacher_{modality}.branch.{name.partition('.')[2]}"] = value.clone()
            elif name.startswith("head."):
                half = value[:, number * dim : (number + 1) * dim] if name.endswith(".0.0.weight") else value
                weights[f"teacher_{modality}.{name}"] = half.clone()
    return weights


@torch.no_grad()
def renew_teachers(trainee: Trainee, ema: RunningMean | None) -> None:
    """Teachers made from a student that learns alone, in the weights and in their running mean.

    Done before every checkpoint of such a stage: whoever starts from one, the next stage included, finds teachers that
    know what the student knows.
    """
    names = [name for name in stored_weights(trainee) if not name.startswith("teacher_")]
    for values in (trainee.state_dict(), *([ema.values] if ema is not None else [])):
        student = {name: values[STUDENT + name].detach() for name in names}
        for name, value in teachers_from_student(student, trainee.config).items():
            values[name].copy_(value)


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
