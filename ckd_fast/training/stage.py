"""One stage of a run: which parts of the model run and learn, and the steps of its optimiser."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ckd_fast.errors import TrainingError
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.elimination import template_mask
from ckd_fast.reference.head import HeadMaps, search_features
from ckd_fast.reference.losses import LossConfig, TaskLoss, task_loss
from ckd_fast.reference.model import Trainee, run_branches
from ckd_fast.reference.training import (
    Distillation,
    Losses,
    OptimiserConfig,
    compute_losses,
    freeze_backbones,
    keep_ratio_at,
    make_optimiser,
)
from ckd_fast.weights.files import write_safetensors

from .batches import NumberedBatch, seed_batch
from .config import Stage, TrainConfig
from .features import FeatureTeacher, imitation_loss
from .processes import Process

TERMS = ("loss", "giou", "l1", "focal", "teacher_rgb", "teacher_tir", "style", "content", "imitation", "gradient_norm")


@dataclass(frozen=True)
class StepOutcome:
    """What one step of the optimiser computed: `TERMS` [10], mean over its batches, and the samples that were bad."""

    terms: Tensor
    bad: tuple[str, ...]


class StageLearner:
    """The model of a stage, which learns in place, and its optimiser.

    A batch that gave bad numbers is saved in `out`, the folder of the run.
    """

    def __init__(
        self, config: TrainConfig, number: int, model: Trainee, process: Process, distil: Distillation, out: Path
    ) -> None:
        self._config, self._number, self._model = config, number, model
        self._process, self._distil, self._out = process, distil, out
        self._stage = stage = config.stages[number]
        model.requires_grad_(requires_grad=True)
        model.zero_grad(set_to_none=True)  # or gradients of the last stage would stay on what is frozen now
        if stage.heads_only:
            freeze_backbones(model)
        if stage.students_only:
            freeze_teachers(model)
        rates = OptimiserConfig(stage.head_rate, stage.backbone_rate, config.weight_decay, config.clip_norm)
        self.optimiser = make_optimiser(model, rates, fused=True)
        threads = torch.get_num_threads()
        self._features = FeatureTeacher(config.feature_teacher, threads) if stage.imitation else None
        self._base_rates = [float(group["lr"]) for group in self.optimiser.param_groups]
        self._network: nn.Module = StudentsAlone(model, config.imitate_after) if stage.students_only else model
        if process.world > 1:
            gpus = [process.device.index] if process.device.type == "cuda" else None
            self._network = DistributedDataParallel(self._network, device_ids=gpus)

    @property
    def head_rate(self) -> float:
        """The heads' learning rate in the last step."""
        return float(self.optimiser.param_groups[0]["lr"])

    def step(self, step: int, total: int, batches: Iterable[NumberedBatch]) -> StepOutcome:
        """One step of the optimiser over `accumulate` batches; `total` counts steps of all stages, for messages."""
        stage, world = self._stage, self._process.world
        set_elimination(self._model, elimination_in(stage, self._config.model, step // stage.steps_per_epoch(world)))
        factor = stage.rate_factor(step, stage.steps(world))
        for group, rate in zip(self.optimiser.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * factor
        self.optimiser.zero_grad(set_to_none=True)
        bad: tuple[str, ...] = ()
        terms = torch.zeros(len(TERMS), device=self._process.device)
        for index, item in enumerate(batches):
            bad += item.bad
            with self._no_exchange(last=index + 1 == stage.accumulate):
                losses, imitation = self._losses(item)
                total_loss = losses.total + stage.imitation * imitation
                (total_loss / stage.accumulate).backward()
            terms[:-1] += _loss_terms(losses, total_loss, imitation) / stage.accumulate
            if not math.isfinite(float(total_loss.detach())):
                self._stop(item, total, "loss")
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._config.clip_norm)
        if not math.isfinite(float(norm)):
            self._stop(item, total, "gradient")
        terms[-1] = norm.detach()
        self.optimiser.step()
        return StepOutcome(terms, bad)

    def _no_exchange(self, *, last: bool) -> AbstractContextManager[None]:
        """Processes exchange their gradients after the last batch of a step alone."""
        if last or not isinstance(self._network, DistributedDataParallel):
            return nullcontext()
        return self._network.no_sync()

    def _losses(self, item: NumberedBatch) -> tuple[Losses, Tensor]:
        """Losses of a batch, and how far its tokens are from the feature teacher's."""
        config, batch = self._config, item.batch
        seed_batch(config.seed, self._number, item.number)
        half = config.precision == "bfloat16"
        precision: AbstractContextManager[None] = (
            torch.autocast(self._process.device.type, torch.bfloat16) if half else nullcontext()
        )
        with precision:
            output = self._network(batch.template, batch.search, batch.mask, batch.visible)
        zero = torch.zeros((), device=self._process.device)
        if not self._stage.students_only:
            return compute_losses(output, batch.target_xywh, config.losses, self._distil), zero
        maps, tokens = output
        losses = students_losses(maps, batch.target_xywh, config.losses)
        if self._features is None:
            return losses, zero
        views = (self._features.tokens(images) for images in (item.clean.template, item.clean.search))
        return losses, imitation_loss(tokens, torch.cat(list(views), dim=2))

    def _stop(self, item: NumberedBatch, total: int, what: str) -> None:
        """End the run on a number that is not finite, and save the batch it came from."""
        path = self._out / f"bad-batch-{total:08d}-rank{self._process.rank}.safetensors"
        batch = item.batch
        tensors = {"template": batch.template, "search": batch.search, "target_xywh": batch.target_xywh}
        if batch.visible is not None:
            tensors["visible"] = batch.visible
        write_safetensors(path, {name: value.cpu() for name, value in tensors.items()}, {"batch": str(item.number)})
        raise TrainingError(
            f"step {total}: the {what} is not finite; its batch is in {path}. The last checkpoint is from before that: "
            "start from it with --init and a lower learning rate, or look at the batch"
        )


class StudentsAlone(nn.Module):
    """The students of a `Trainee`, called like a `Trainee`, for a stage without teachers.

    Gives the head's maps and the tokens after some blocks [2, B, N, C].
    """

    def __init__(self, trainee: Trainee, blocks: int) -> None:
        super().__init__()
        self.trainee, self._blocks = trainee, blocks

    def forward(
        self, template_images: Tensor, search_images: Tensor, mask: Tensor | None, visible: Tensor | None
    ) -> tuple[HeadMaps, Tensor]:
        config, student = self.trainee.config, self.trainee.student
        if mask is None:
            mask = template_mask(config, batch=template_images.shape[1]).to(template_images.device)
        template, search = student.embed_template(template_images), student.embed_search(search_images, visible)
        backbone = run_branches(student.branches, template, search, config, mask)
        maps: HeadMaps = student.head(search_features(backbone.tokens, config.search_tokens))
        return maps, backbone.blocks[min(self._blocks, config.depth) - 1]


def students_losses(maps: HeadMaps, target_xywh: Tensor, config: LossConfig) -> Losses:
    """Losses of a batch without teachers, whose terms are zero."""
    student = task_loss(maps, target_xywh)
    zero = torch.zeros_like(student.focal.detach())
    none = TaskLoss(zero, zero, zero)
    return Losses(student.total(config), student, none, none, style=zero, content=zero, blocks=())


def freeze_teachers(trainee: Trainee) -> None:
    for teacher in (trainee.teacher_rgb, trainee.teacher_tir):
        teacher.requires_grad_(requires_grad=False)


def set_elimination(trainee: Trainee, config: ModelConfig) -> None:
    """Drop tokens as this configuration says from now on."""
    trainee.config = trainee.student.config = config


def elimination_in(stage: Stage, model: ModelConfig, epoch: int) -> ModelConfig:
    """The model's configuration in an epoch of a stage."""
    if not stage.elimination:
        return dataclasses.replace(model, elimination="none")
    ratio = keep_ratio_at(epoch, stage.eliminate_from, stage.eliminate_fully_at, model.keep_ratio)
    return dataclasses.replace(model, keep_ratio=ratio)


def _loss_terms(losses: Losses, total: Tensor, imitation: Tensor) -> Tensor:
    """The terms of a batch in the order of `TERMS`, without the gradient's norm."""
    student = losses.student
    teachers = [teacher.giou + teacher.l1 + teacher.focal for teacher in (losses.teacher_rgb, losses.teacher_tir)]
    distilled = (losses.style, losses.content, imitation)
    values = [total, student.giou, student.l1, student.focal, *teachers, *distilled]
    return torch.stack([value.detach().float() for value in values])
