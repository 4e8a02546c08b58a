"""Fused operations beside plain PyTorch doing the same: pairs of calls that make their own memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ckd_fast.kernels.attention import deciding_tokens
from ckd_fast.kernels.distillation import Reading, distillation_backward, distillation_forward
from ckd_fast.kernels.elimination import attend_score_gather
from ckd_fast.kernels.launch import LaunchSettings
from ckd_fast.reference import elimination as plain
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.losses import LossConfig, distillation
from ckd_fast.reference.vit import attention

Sides = tuple[Callable[[], Tensor], Callable[[], Tensor]]  # ours, and plain PyTorch


def heads(config: ModelConfig, like: Tensor, targets: int = 1) -> Tensor:
    """Random queries, keys and values of all tokens as views of one tensor [3, 2, B, H, N, D]."""
    packed = like.new_empty(2, targets, config.template_tokens + config.search_tokens, 3 * config.dim).normal_()
    views: Tensor = packed.unflatten(-1, (3, config.heads, config.head_dim)).permute(3, 0, 1, 4, 2, 5)
    return views


def eliminating(config: ModelConfig, like: Tensor, targets: int, settings: LaunchSettings) -> Sides:
    """Attention, scores, ranking and gathering of both modalities in the first block that drops tokens."""
    q, k, v = heads(config, like, targets)
    block, template = config.eliminate_at[0], config.template_tokens
    mask = plain.template_mask(config, batch=targets).to(like.device)
    deciding, keep = deciding_tokens(mask), config.search_tokens_after(block)
    positions = torch.arange(config.search_tokens, device=like.device).expand(2, targets, -1).contiguous()
    short = positions.int()

    def fused() -> Tensor:
        done = attend_score_gather(q, k, v, deciding=deciding, positions=short, keep=keep, settings=settings)
        return done.run().attended

    def unfused() -> Tensor:
        attended = attention(q, k, v).transpose(2, 3).flatten(3)
        scores = plain.token_scores(plain.template_probabilities(q, k, template), mask, config, slice(None))
        kept = plain.eliminate(block, scores, positions, config.keep_ratio).kept_index
        return plain.keep_tokens(attended, kept, template)

    return fused, unfused


def distilling(batch: int, tokens: int, width: int, depth: int, device: torch.device) -> Sides:
    """Style and content losses of a training step, forward and backward; returned is the last block's gradient."""
    blocks = [torch.randn(4, batch, tokens, width, device=device, requires_grad=True) for _ in range(depth)]
    upstream, reading, config = torch.ones(3, device=device), Reading(), LossConfig()

    def fused() -> Tensor:
        for block in blocks:
            moments = distillation_forward(block.detach(), reading).run().moments
            gradient = distillation_backward(block.detach(), moments, upstream, reading).run()
        return gradient

    def unfused() -> Tensor:
        for block in blocks:
            (found,) = distillation([block], config)
            (gradient,) = torch.autograd.grad(found.style + found.content_rgb + found.content_tir, block)
        return gradient

    return fused, unfused
