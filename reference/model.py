"""CKD: two student branches in step, one head; in training two teachers beside them.

Tensors of several branches are stacked along their first axis, in the order of `MODALITIES`: [2, B, N, C].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import ModelConfig
from .elimination import (
    Elimination,
    eliminate,
    keep_tokens,
    restore,
    template_mask,
    template_probabilities,
    token_scores,
)
from .head import CenterHead, HeadMaps, search_features
from .vit import Block, Branch, attention

MODALITIES = ("rgb", "tir")
DROP_PATH = 0.1
OnStep = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class BackboneOutput:
    """What S branches made of their tokens."""

    # after the final norm, search tokens in raster order, zeros where dropped [S, B, T + search_tokens, C]
    tokens: Tensor
    eliminations: tuple[Elimination, ...]  # one entry per elimination, in order
    blocks: tuple[Tensor, ...]  # output of every block, before the final norm: `depth` tensors [S, B, T + current, C]


@dataclass(frozen=True)
class StudentOutput:
    """Head maps and the backbone behind them."""

    maps: HeadMaps
    backbone: BackboneOutput


def ignore_step(_name: str, _value: Tensor) -> None:
    """An `OnStep` that keeps nothing."""


def run_branches(
    branches: Sequence[Branch],
    template: Tensor,
    search: Tensor,
    config: ModelConfig,
    mask: Tensor,
    *,
    voters: slice = slice(None),
    present: Tensor | None = None,
    on_step: OnStep = ignore_step,
) -> BackboneOutput:
    """Run S branches side by side through all blocks; they meet only where tokens are dropped.

    Args:
        branches: S backbones.
        template: embedded template tokens [S, B, T, C].
        search: embedded search tokens [S, B, L, C].
        config: sizes and elimination.
        mask: template tokens that decide what is dropped [B, T].
        voters: branches that decide under "mce".
        present: [S, B] bool, False where a modality is missing.
        on_step: called with the name and the value of every step.
    """
    tokens = torch.cat([template, search], dim=2)  # [S, B, T + L, C]
    template_tokens = template.shape[2]
    positions = torch.arange(search.shape[2], device=tokens.device).expand(*tokens.shape[:2], -1)  # [S, B, L]
    eliminations: list[Elimination] = []
    outputs: list[Tensor] = []
    on_step("patch_embed", tokens)
    for index in range(config.depth):
        blocks: list[Block] = [branch.blocks[index] for branch in branches]  # type: ignore[misc]
        qkv = torch.stack([block.queries_keys_values(x) for block, x in zip(blocks, tokens, strict=True)], dim=1)
        queries, keys, values = qkv  # [S, B, heads, N, d] each
        attended = attention(queries, keys, values)
        tokens = tokens + torch.stack([block.projection(a) for block, a in zip(blocks, attended, strict=True)])
        if config.eliminates_at(index):
            # After the attention's residual and before the MLP, which already runs on the reduced set.
            with torch.no_grad():
                probabilities = template_probabilities(queries, keys, template_tokens)
                scores = token_scores(probabilities, mask, config, voters, present)
                elimination = eliminate(index, scores, positions, config.keep_ratio)
            tokens = keep_tokens(tokens, elimination.kept_index, template_tokens)
            positions = elimination.kept
            eliminations.append(elimination)
            on_step(f"block{index}.scores", scores)
            on_step(f"block{index}.eliminate", elimination.kept)
        on_step(f"block{index}.attention", tokens)
        tokens = tokens + torch.stack([block.mlp(x) for block, x in zip(blocks, tokens, strict=True)])
        outputs.append(tokens)
        on_step(f"block{index}.mlp", tokens)
    normed = torch.stack([branch.norm(x) for branch, x in zip(branches, tokens, strict=True)])
    if eliminations:
        normed = restore(normed, positions, config)
    on_step("norm", normed)
    return BackboneOutput(normed, tuple(eliminations), tuple(outputs))


class Student(nn.Module):
    """The model that tracks: an RGB and a thermal branch, one head on both."""

    def __init__(self, config: ModelConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.rgb = Branch(config, drop_path)
        self.tir = self.rgb if config.share_students else Branch(config, drop_path)
        self.head = CenterHead(2 * config.dim, config.head_channels)

    @property
    def branches(self) -> tuple[Branch, Branch]:
        """The backbones in the order of `MODALITIES`."""
        return self.rgb, self.tir

    def embed_template(self, images: Tensor) -> Tensor:
        """Template crops [2, B, 3, h, w] -> tokens [2, B, T, C]; done once per target."""
        return torch.stack([b.embed_template(x) for b, x in zip(self.branches, images, strict=True)])

    def embed_search(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """Search crops [2, B, 3, H, W] -> tokens [2, B, L, C]; `visible` [B, L] hides the same patches in both."""
        return torch.stack([b.embed_search(x, visible) for b, x in zip(self.branches, images, strict=True)])

    def forward(
        self,
        template: Tensor,
        search_images: Tensor,
        mask: Tensor | None = None,
        present: Tensor | None = None,
        on_step: OnStep = ignore_step,
    ) -> StudentOutput:
        """Find B targets.

        Args:
            template: template tokens of `embed_template` [2, B, T, C].
            search_images: search crops, normalised [2, B, 3, H, W].
            mask: template tokens that decide what is dropped [B, T]; None: by `config.template_range`, which must
                not be "GT_BOX" then.
            present: [2, B] bool, False where a modality is missing (its crop is then the mean image, zeros).
            on_step: called with the name and the value of every step.
        """
        if mask is None:
            mask = template_mask(self.config, batch=template.shape[1]).to(template.device)
        search = self.embed_search(search_images)
        backbone = run_branches(self.branches, template, search, self.config, mask, present=present, on_step=on_step)
        maps = self.head(search_features(backbone.tokens, search.shape[2]))
        on_step("head.score", maps.score)
        on_step("head.size", maps.size)
        on_step("head.offset", maps.offset)
        return StudentOutput(maps, backbone)


class Teacher(nn.Module):
    """One modality's own tracker: a branch and a head."""

    def __init__(self, config: ModelConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.branch = Branch(config, drop_path)
        self.head = CenterHead(config.dim, config.head_channels)


@dataclass(frozen=True)
class TraineeOutput:
    """Maps of students and teachers, and the four backbones: rgb teacher, tir teacher, rgb student, tir student."""

    student: HeadMaps
    teacher_rgb: HeadMaps
    teacher_tir: HeadMaps
    backbone: BackboneOutput


class Trainee(nn.Module):
    """What is trained: the student and one teacher per modality."""

    def __init__(self, config: ModelConfig, drop_path: float = DROP_PATH) -> None:
        super().__init__()
        self.config = config
        self.student = Student(config, drop_path)
        self.teacher_rgb = Teacher(config, drop_path)
        self.teacher_tir = Teacher(config, drop_path)

    def forward(
        self, template_images: Tensor, search_images: Tensor, mask: Tensor | None = None, visible: Tensor | None = None
    ) -> TraineeOutput:
        """One pass of all four branches.

        Args:
            template_images: [2, B, 3, h, w].
            search_images: [2, B, 3, H, W].
            mask: template tokens that decide what is dropped [B, T]; None: by `config.template_range`.
            visible: search patches that the students see [B, L]; the teachers see all.
        """
        config, student = self.config, self.student
        if mask is None:
            mask = template_mask(config, batch=template_images.shape[1]).to(template_images.device)
        teachers = (self.teacher_rgb.branch, self.teacher_tir.branch)
        pairs = list(zip(teachers, template_images, search_images, strict=True))
        template = torch.stack([branch.embed_template(image) for branch, image, _ in pairs])
        search = torch.stack([branch.embed_search(image) for branch, _, image in pairs])
        backbone = run_branches(
            (*teachers, *student.branches),
            torch.cat([template, student.embed_template(template_images)]),
            torch.cat([search, student.embed_search(search_images, visible)]),
            config,
            mask,
            voters=slice(2, 4),  # the students decide, the teachers drop the same tokens
        )
        rgb, tir, both = backbone.tokens[0:1], backbone.tokens[1:2], backbone.tokens[2:4]
        return TraineeOutput(
            student=student.head(search_features(both, config.search_tokens)),
            teacher_rgb=self.teacher_rgb.head(search_features(rgb, config.search_tokens)),
            teacher_tir=self.teacher_tir.head(search_features(tir, config.search_tokens)),
            backbone=backbone,
        )


def initialise(model: nn.Module, seed: int) -> None:
    """Draw all weights from one seed: normal(0, 0.02) in the backbones, Xavier in the head, biases zero, norms one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:  # norms
                parameter.fill_(1.0)
            elif parameter.dim() == 4 and not name.endswith("patch_embed.weight"):  # the head's convolutions
                fan_out, fan_in = (parameter[:, 0].numel(), parameter[0].numel())
                parameter.normal_(0.0, (2.0 / (fan_in + fan_out)) ** 0.5, generator=generator)
            else:
                parameter.normal_(0.0, 0.02, generator=generator)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
