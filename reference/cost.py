"""Parameters and multiply-accumulates of a model, by formula.

The published convention (thop 0.1.1) counts one per multiply-accumulate of linear layers and convolutions, biases not,
four per output element of LayerNorm and BatchNorm, and nothing for attention's two matrix products, softmax, GELU and
residuals. `Cost.macs_with_attention` counts linear layers, convolutions and attention's products and no norms.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import device, nn

from .config import ModelConfig
from .model import Student
from .vit import Block

NORM_OPERATIONS = 4
UNUSED_POSITIONS = 197 + 1  # `pos_embed` and `cls_token` of a 224-pixel classifier, in every published file


@dataclass(frozen=True)
class PartCost:
    """One part of the model: weights, multiply-accumulates, norm operations, attention products."""

    name: str
    parameters: int
    macs: int
    norm_operations: int = 0
    attention_macs: int = 0

    @property
    def published(self) -> int:
        """By the published convention."""
        return self.macs + self.norm_operations


@dataclass(frozen=True)
class Cost:
    """A whole model, one template and search pair of both modalities."""

    parts: tuple[PartCost, ...]
    unused_parameters: int

    @property
    def parameters(self) -> int:
        """Parameters that do something."""
        return sum(part.parameters for part in self.parts)

    @property
    def published_parameters(self) -> int:
        """With the class tokens and position tables that published files carry unused."""
        return self.parameters + self.unused_parameters

    @property
    def published_macs(self) -> int:
        """By the published convention."""
        return sum(part.published for part in self.parts)

    @property
    def macs_with_attention(self) -> int:
        """Linear layers, convolutions and attention's two products."""
        return sum(part.macs + part.attention_macs for part in self.parts)


def model_cost(config: ModelConfig) -> Cost:
    """Count parameters and operations for one target in one frame pair."""
    with device("meta"):
        student = Student(config)

    def parameters(*modules: nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    branches = [student.rgb] if config.share_students else [student.rgb, student.tir]
    dim, template = config.dim, config.template_tokens
    embedding_macs = 2 * (template + config.search_tokens) * dim * 3 * config.patch_size**2
    positions = sum(b.pos_embed_template.numel() + b.pos_embed_search.numel() for b in branches)
    parts = [
        PartCost("patch embedding", parameters(*(b.patch_embed for b in branches)) + positions, embedding_macs),
    ]
    attention_macs = products = mlp_macs = attention_norms = mlp_norms = 0
    search = config.search_tokens
    for index in range(config.depth):
        before, after = template + search, template + config.search_tokens_after(index)
        attention_macs += 2 * before * 4 * dim * dim
        products += 2 * 2 * before * before * dim
        mlp_macs += 2 * after * 2 * config.mlp_ratio * dim * dim
        attention_norms += 2 * before * dim * NORM_OPERATIONS
        mlp_norms += 2 * after * dim * NORM_OPERATIONS
        search = config.search_tokens_after(index)
    blocks: list[Block] = [block for branch in branches for block in branch.blocks]  # type: ignore[misc]
    attention_modules: list[nn.Module] = [module for b in blocks for module in (b.norm1, b.qkv, b.proj)]
    mlp_modules: list[nn.Module] = [module for b in blocks for module in (b.norm2, b.fc1, b.fc2)]
    parts += [
        PartCost("attention", parameters(*attention_modules), attention_macs, attention_norms, products),
        PartCost("mlp", parameters(*mlp_modules), mlp_macs, mlp_norms),
        PartCost(
            "final norm", parameters(*(b.norm for b in branches)), 0, 2 * (template + search) * dim * NORM_OPERATIONS
        ),
    ]
    cells = config.search_tokens
    head_macs = sum(m.weight.numel() * cells for m in student.head.modules() if isinstance(m, nn.Conv2d))
    head_norms = sum(
        m.num_features * cells * NORM_OPERATIONS for m in student.head.modules() if isinstance(m, nn.BatchNorm2d)
    )
    parts.append(PartCost("head", parameters(student.head), head_macs, head_norms))
    return Cost(tuple(parts), len(branches) * UNUSED_POSITIONS * dim)
