"""The distillation terms of a step: plain PyTorch, fused (one kernel per block and direction), or raw features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ckd_fast.errors import EngineError
from ckd_fast.reference.losses import BlockDistillation, LossConfig, distillation
from ckd_fast.reference.training import Distillation

from .config import TrainConfig


class FusedDistillation(torch.autograd.Function):
    """Style and both content terms of one block [4, B, N, C] -> [3], see `kernels/distillation.py`."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, config: LossConfig) -> Tensor:  # noqa: ANN401
        from ckd_fast.kernels.distillation import Reading, distillation_forward

        reading = Reading(
            correction=int(config.unbiased_std),
            eps=config.content_eps,
            move_rgb=config.style_gradient in ("both", "rgb"),
            move_tir=config.style_gradient in ("both", "tir"),
            move_teachers=not config.detach_teachers,
        )
        statistics = distillation_forward(features, reading).run()
        moments = statistics.moments
        ctx.save_for_backward(features, moments.shift, moments.m2, moments.q)
        ctx.reading = reading
        return statistics.terms()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        from ckd_fast.kernels.distillation import Moments, distillation_backward

        features, *moments = ctx.saved_tensors
        gradient = upstream[0].float().contiguous()
        return distillation_backward(features, Moments(*moments), gradient, ctx.reading).run(), None


def fused_distillation(blocks: Sequence[Tensor], config: LossConfig) -> tuple[BlockDistillation, ...]:
    """The same terms as `reference.losses.distillation`."""
    return tuple(BlockDistillation(*FusedDistillation.apply(block.contiguous(), config)) for block in blocks)  # type: ignore[no-untyped-call]


def feature_distillation(blocks: Sequence[Tensor], config: LossConfig) -> tuple[BlockDistillation, ...]:
    """FD: each student imitates its teacher's features as they are. There is no style term."""
    terms = []
    for teacher_rgb, teacher_tir, rgb, tir in blocks:
        targets = [t.detach() if config.detach_teachers else t for t in (teacher_rgb, teacher_tir)]
        content = [functional.mse_loss(s, t) for s, t in zip((rgb, tir), targets, strict=True)]
        terms.append(BlockDistillation(torch.zeros_like(content[0]), *content))
    return tuple(terms)


def distillation_of(config: TrainConfig, device: torch.device) -> Distillation:
    """The terms that a configuration names."""
    if config.distillation == "features":
        return feature_distillation
    if config.loss_engine == "reference":
        return distillation
    if device.type != "cuda":
        raise EngineError(f"loss_engine='fused' needs a GPU, but this run is on {device}: use loss_engine='reference'")
    from ckd_fast.kernels.requirements import missing

    lack = missing(device)
    if lack is not None:
        raise EngineError(f"loss_engine='fused': {lack}; use loss_engine='reference'")
    return fused_distillation
