"""One step of training: losses of a batch, parameter groups, clipping, the two stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .losses import BlockDistillation, LossConfig, TaskLoss, distillation, over_blocks, task_loss
from .model import Trainee, TraineeOutput

Distillation = Callable[[Sequence[Tensor], LossConfig], tuple[BlockDistillation, ...]]


@dataclass(frozen=True)
class Batch:
    """B samples."""

    template: Tensor  # normalised template crops, rgb and tir [2, B, 3, h, w]
    search: Tensor  # normalised search crops [2, B, 3, H, W]
    target_xywh: Tensor  # the target in units of the search crop [B, 4]
    mask: Tensor | None = None  # template tokens that decide eliminations [B, T], or None for the model's own range
    visible: Tensor | None = None  # search patches that the students see [B, L], or None for all


@dataclass(frozen=True)
class Losses:
    """All terms of one batch; `style` and `content` are over all blocks, unweighted."""

    total: Tensor
    student: TaskLoss
    teacher_rgb: TaskLoss
    teacher_tir: TaskLoss
    style: Tensor
    content: Tensor
    blocks: tuple[BlockDistillation, ...]


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW without schedule, as published: weight decay on everything, biases and norms included."""

    head_rate: float = 5e-5
    backbone_rate: float = 5e-6
    weight_decay: float = 1e-4
    clip_norm: float = 0.1


@dataclass(frozen=True)
class StepOutput:
    """Losses of the step, the model's output, and the gradient's norm before clipping."""

    losses: Losses
    output: TraineeOutput
    gradient_norm: Tensor


def compute_losses(
    output: TraineeOutput, target_xywh: Tensor, config: LossConfig, distil: Distillation = distillation
) -> Losses:
    """All losses of one batch. Teachers learn from their own task losses only."""
    student = task_loss(output.student, target_xywh)
    teacher_rgb = task_loss(output.teacher_rgb, target_xywh)
    teacher_tir = task_loss(output.teacher_tir, target_xywh)
    blocks = distil(output.backbone.blocks, config)
    style = over_blocks([block.style for block in blocks], config)
    content = over_blocks([block.content_rgb + block.content_tir for block in blocks], config)
    task = student.total(config) + teacher_rgb.total(config) + teacher_tir.total(config)
    total = task + config.style_weight * style + config.content_weight * content
    return Losses(total, student, teacher_rgb, teacher_tir, style, content, blocks)


def make_optimiser(model: Trainee, config: OptimiserConfig, *, fused: bool = False) -> torch.optim.AdamW:
    """All three heads in one group, all four backbones in another; `fused`: one pass over all moments."""
    heads = [p for name, p in model.named_parameters() if ".head." in name and p.requires_grad]
    backbones = [p for name, p in model.named_parameters() if ".head." not in name and p.requires_grad]
    groups = [{"params": heads, "lr": config.head_rate}]
    if backbones:
        groups.append({"params": backbones, "lr": config.backbone_rate})
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=fused)


def freeze_backbones(model: Trainee) -> None:
    """Stage 2: only the three heads learn. Their batch norms move; the frozen backbones keep their drop path."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".head." in name)


def training_step(
    model: Trainee,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    losses: LossConfig,
    optimiser_config: OptimiserConfig,
    distil: Distillation = distillation,
) -> StepOutput:
    """Forward, backward, clip, step. `distil` may be a fused equivalent of `losses.distillation`."""
    output = model(batch.template, batch.search, batch.mask, batch.visible)
    terms = compute_losses(output, batch.target_xywh, losses, distil)
    optimiser.zero_grad(set_to_none=True)
    terms.total.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), optimiser_config.clip_norm)
    optimiser.step()
    return StepOutput(terms, output, norm)


def keep_ratio_at(epoch: int, start: int, total: int, keep_ratio: float) -> float:
    """Share of tokens kept in this epoch: 1 before `start`, a cosine down to `keep_ratio` at `total`.

    The published recipe has start = total = 0, that is, `keep_ratio` from the first epoch.
    """
    if epoch < start:
        return 1.0
    if epoch >= total:
        return keep_ratio
    progress = (epoch - start) / (total - start)
    return keep_ratio + (1 - keep_ratio) * (1 + math.cos(math.pi * progress)) / 2
