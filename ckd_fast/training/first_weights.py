"""The first weights of a run: from a file or at random, and teachers made from a student."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.head import CenterHead
from ckd_fast.reference.model import Trainee, initialise
from ckd_fast.reference.vit import Block
from ckd_fast.weights import load_model

from .config import TrainConfig
from .run_weights import STUDENT, TEACHER, RunWeights, load_weights, stored_weights, trainee_names

log = logging.getLogger(__name__)
BASE_DIM = 768
LAST_SCORE_BIAS = "score.4.bias"


def initial_trainee(config: TrainConfig) -> Trainee:
    """Student and teachers with their first weights, in training mode."""
    trainee = Trainee(config.model, config.drop_path)
    if config.init == "random":
        initialise(trainee, config.seed)
        _widen(trainee)
        _expect_little(trainee)
        _attend_to_similar_tokens(trainee, config.seed)
        return trainee.train()
    loaded = load_model(config.init, config.model, config.seed)
    alone = next((stage.name for stage in config.stages if stage.students_only), None)
    if loaded.teachers and alone is not None:
        log.warning("%s holds teachers, but stage %r trains the student alone and replaces them", config.init, alone)
    teachers = dict(loaded.teachers) or teachers_from_student(loaded.weights, loaded.config)
    load_weights(trainee, trainee_names({**loaded.weights, **teachers}))
    return trainee.train()


def _widen(trainee: Trainee) -> None:
    """Give the linear layers of a narrow model the gain that normal(0, 0.02) gives ViT-B.

    With 0.02 at 128 channels, attention starts nearly uniform and takes long to find anything.
    """
    gain = (BASE_DIM / trainee.config.dim) ** 0.5
    with torch.no_grad():
        for module in trainee.modules():
            if isinstance(module, nn.Linear):
                module.weight *= gain


def _expect_little(trainee: Trainee) -> None:
    """Let the heads start with a score of about 0.1 everywhere: nearly every cell is background."""
    with torch.no_grad():
        for module in trainee.modules():
            if isinstance(module, CenterHead):
                module.get_parameter(LAST_SCORE_BIAS).fill_(-2.19)


def _attend_to_similar_tokens(trainee: Trainee, seed: int) -> None:
    """Let attention start by similarity: queries and keys of a head project onto the same random directions.

    A tracker must find what looks like its template. Learned from nothing, that takes many thousand pairs. Trockman and
    Kolter's "mimetic" start for small data (arXiv:2305.09828) makes q k^T a similarity from the first step; their
    change of values and projections is left out.
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
                    shared = torch.linalg.qr(square).Q[: dim // module.heads].to(queries.device)  # orthonormal rows
                    # A normalised token has squared norm C: with a factor of 2 its own score stands out clearly.
                    queries[rows] = 0.5 * queries[rows] + 2 * shared
                    keys[rows] = 0.5 * keys[rows] + 2 * shared


def teachers_from_student(student: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Teachers for a student that comes without: its branches, and the half of its head that saw the modality.

    Names are those of our files. CKD starts the other way round: the student's head is a one-modality head twice, side
    by side.
    """
    dim = config.dim
    weights: dict[str, Tensor] = {}
    for number, modality in enumerate(("rgb", "tir")):
        branch = "rgb" if config.share_students else modality
        for name, value in student.items():
            if name.startswith(f"{branch}."):
                weights[f"{TEACHER}{modality}.branch.{name.partition('.')[2]}"] = value.clone()
            elif name.startswith("head."):
                half = value[:, number * dim : (number + 1) * dim] if name.endswith(".0.0.weight") else value
                weights[f"{TEACHER}{modality}.{name}"] = half.clone()
    return weights


@torch.no_grad()
def renew_teachers(weights: RunWeights) -> None:
    """Make the teachers anew from the student, in the model and in the running mean.

    A stage that trains the student alone does this before every checkpoint, so the next stage, and any run that starts
    from the checkpoint, finds teachers that know what the student knows.
    """
    names = [name for name in stored_weights(weights.model) if not name.startswith(TEACHER)]
    for values in (weights.model.state_dict(), *([weights.mean.values] if weights.mean is not None else [])):
        student = {name: values[STUDENT + name].detach() for name in names}
        for name, value in teachers_from_student(student, weights.model.config).items():
            values[name].copy_(value)
