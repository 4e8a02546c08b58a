"""The losses of coupled knowledge distillation, equations 1-8 of the paper, in the program's and the paper's reading.

For block l with outputs F of the RGB and thermal students (S_r, S_t) and teachers (T_r, T_t), tokens N, channels C:

    style     mu, sigma over tokens, per sample and channel (eq. 1, 2)
              L_sd = sum_l mean_{B, C} [ (mu_r - mu_t)^2 + (sigma_r - sigma_t)^2 ]            (eq. 3)
    content   IN(F) = (F - mu) / sqrt(var + eps), over tokens, per sample and channel        (eq. 4)
              L_cd = sum_l sum_m mean_{B, C, N} (IN(S_m) - IN(T_m))^2, teachers detached      (eq. 5)
    task      L = 2 GIoU + 5 L1 + focal, for the student and for both teachers
    total     task_student + task_teacher_rgb + task_teacher_tir + w_sd L_sd + w_cd L_cd     (eq. 6, 8)

Equation 7 is the elimination score: see elimination.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from .boxes import cxcywh_to_xyxy, find_peak, xywh_to_xyxy
from .head import HeadMaps
from .labels import score_targets

Gradient = Literal["both", "rgb", "tir"]


@dataclass(frozen=True)
class LossConfig:
    """Where paper and program differ; the defaults are the program's, `LossConfig.paper()` is the paper's text.

    Attributes:
        style_weight: w_sd.
        content_weight: w_cd.
        unbiased_std: sigma with 1/(N-1) (program) or 1/N (paper).
        average_blocks: mean over the blocks (paper) or sum (program).
        content_eps: inside the root of the instance norm; the paper has none.
        style_gradient: students that the style loss moves; "rgb" moves the RGB student towards a fixed thermal one.
        detach_teachers: the content loss moves the students only.
        giou_weight, l1_weight, focal_weight: the task loss.
    """

    style_weight: float = 0.01
    content_weight: float = 0.1
    unbiased_std: bool = True
    average_blocks: bool = False
    content_eps: float = 1e-5
    style_gradient: Gradient = "both"
    detach_teachers: bool = True
    giou_weight: float = 2.0
    l1_weight: float = 5.0
    focal_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.style_gradient not in ("both", "rgb", "tir"):
            raise ValueError(f"style_gradient={self.style_gradient!r}: known are both, rgb, tir")

    @classmethod
    def paper(cls) -> LossConfig:
        """1/N, 1/L, no eps, and style : content = 2 : 1.

        The paper gives only the ratio. The content weight keeps the program's strength (0.1 on a sum of 12 blocks is
        1.2 on their mean), the style weight follows from it.
        """
        return cls(style_weight=2.4, content_weight=1.2, unbiased_std=False, average_blocks=True, content_eps=0.0)


@dataclass(frozen=True)
class BlockDistillation:
    """Unweighted terms of one block, scalars."""

    style: Tensor
    content_rgb: Tensor
    content_tir: Tensor


@dataclass(frozen=True)
class TaskLoss:
    """Terms of one head, scalars."""

    giou: Tensor
    l1: Tensor
    focal: Tensor

    def total(self, config: LossConfig) -> Tensor:
        """The weighted sum."""
        return config.giou_weight * self.giou + config.l1_weight * self.l1 + config.focal_weight * self.focal


def style_loss(rgb: Tensor, tir: Tensor, config: LossConfig) -> Tensor:
    """Distance of the two students' token statistics, [B, N, C] each -> scalar."""
    if config.style_gradient == "rgb":
        tir = tir.detach()
    if config.style_gradient == "tir":
        rgb = rgb.detach()
    mean_gap = rgb.mean(1) - tir.mean(1)  # [B, C]
    correction = 1 if config.unbiased_std else 0
    std_gap = rgb.std(1, correction=correction) - tir.std(1, correction=correction)
    return (mean_gap.square() + std_gap.square()).mean()


def instance_norm(features: Tensor, eps: float) -> Tensor:
    """Per sample and channel over tokens, biased variance, no affine, [B, N, C]."""
    centred = features - features.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + eps).sqrt()


def content_loss(student: Tensor, teacher: Tensor, config: LossConfig) -> Tensor:
    """Distance of the instance-normalised features, [B, N, C] each -> scalar."""
    if config.detach_teachers:
        teacher = teacher.detach()
    return functional.mse_loss(instance_norm(student, config.content_eps), instance_norm(teacher, config.content_eps))


def distillation(blocks: Sequence[Tensor], config: LossConfig) -> tuple[BlockDistillation, ...]:
    """Terms of every block.

    Args:
        blocks: block outputs [4, B, N, C]: rgb teacher, tir teacher, rgb student, tir student.
        config: the reading.
    """
    terms = []
    for teacher_rgb, teacher_tir, rgb, tir in blocks:
        style = style_loss(rgb, tir, config)
        terms.append(
            BlockDistillation(style, content_loss(rgb, teacher_rgb, config), content_loss(tir, teacher_tir, config))
        )
    return tuple(terms)


def over_blocks(terms: Sequence[Tensor], config: LossConfig) -> Tensor:
    """Sum (program) or mean (paper) over the blocks."""
    stacked = torch.stack(list(terms))
    return stacked.mean() if config.average_blocks else stacked.sum()


def focal_loss(score: Tensor, target: Tensor) -> Tensor:
    """CenterNet's focal loss (alpha 2, beta 4), summed and divided by the number of cells that are exactly one."""
    positive = target.eq(1).to(score.dtype)
    negative = 1 - positive
    positive_loss = (score.log() * (1 - score).square() * positive).sum()
    negative_loss = ((1 - score).log() * score.square() * (1 - target).pow(4) * negative).sum()
    # A centre on the crop's far edge rounds to a cell outside the map: no cell is one, and the sum stays undivided.
    return -(positive_loss + negative_loss) / positive.sum().clamp(min=1)


def giou_loss(boxes_xyxy: Tensor, target_xyxy: Tensor) -> Tensor:
    """1 - generalised IoU, mean over [B, 4]."""
    low = torch.maximum(boxes_xyxy[:, :2], target_xyxy[:, :2])
    high = torch.minimum(boxes_xyxy[:, 2:], target_xyxy[:, 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(-1) + (target_xyxy[:, 2:] - target_xyxy[:, :2]).prod(-1)
    union = areas - intersection  # positive: a predicted size is at least 1e-4
    hull_low = torch.minimum(boxes_xyxy[:, :2], target_xyxy[:, :2])
    hull_high = torch.maximum(boxes_xyxy[:, 2:], target_xyxy[:, 2:])
    hull = (hull_high - hull_low).prod(-1)
    giou = intersection / union - (hull - union) / hull
    return (1 - giou).mean()


def task_loss(maps: HeadMaps, target_xywh: Tensor) -> TaskLoss:
    """Losses of one head.

    Args:
        maps: its output for B samples.
        target_xywh: the target in units of the search crop [B, 4].
    """
    grid = maps.score.shape[-1]
    # The box is read where the PREDICTED score map peaks, not at the label's centre.
    predicted = cxcywh_to_xyxy(find_peak(maps).boxes_cxcywh)
    target = xywh_to_xyxy(target_xywh).clamp(0, 1)
    return TaskLoss(
        giou=giou_loss(predicted, target),
        l1=functional.l1_loss(predicted, target),
        focal=focal_loss(maps.score, score_targets(target_xywh, grid)),
    )
