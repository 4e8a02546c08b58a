"""One branch: a vision transformer that sees template and search tokens together.

A block, on tokens x of template and search side by side:

    x = x + proj(attention(norm1(x)))        softmax over all current keys, template and search
    x = x + fc2(gelu(fc1(norm2(x))))         exact (erf) GELU

The block is offered in these pieces because elimination drops tokens between its two lines (see model.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .config import ModelConfig

LAYER_NORM_EPS = 1e-6


class Block(nn.Module):
    """The weights of one transformer block, pre-norm."""

    def __init__(self, config: ModelConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        dim, hidden = config.dim, config.dim * config.mlp_ratio
        self.heads = config.heads
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def queries_keys_values(self, tokens: Tensor) -> Tensor:
        """[B, N, C] -> [3, B, heads, N, C / heads]."""
        batch, count, dim = tokens.shape
        qkv: Tensor = self.qkv(self.norm1(tokens))
        return qkv.reshape(batch, count, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)

    def projection(self, attended: Tensor) -> Tensor:
        """[B, heads, N, C / heads] -> the attention's residual [B, N, C]."""
        return self._drop_path(self.proj(attended.transpose(1, 2).flatten(2)))

    def mlp(self, tokens: Tensor) -> Tensor:
        """[B, N, C] -> the MLP's residual [B, N, C]."""
        return self._drop_path(self.fc2(functional.gelu(self.fc1(self.norm2(tokens)))))

    def _drop_path(self, residual: Tensor) -> Tensor:
        """In training, drop the whole residual of a sample with this probability (stochastic depth)."""
        if not self.training or self.drop_path == 0:
            return residual
        keep = 1 - self.drop_path
        kept = residual.new_empty(residual.shape[0], 1, 1).bernoulli_(keep)  # [B, 1, 1]
        return residual * kept / keep


class Branch(nn.Module):
    """One modality's backbone: patch embedding, learned positions, blocks, final norm."""

    def __init__(self, config: ModelConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, config.dim, config.patch_size, stride=config.patch_size)
        # No class token and no segment embedding; the authors' files carry an unused `cls_token` and `pos_embed`.
        self.pos_embed_template = nn.Parameter(torch.zeros(1, config.template_tokens, config.dim))
        self.pos_embed_search = nn.Parameter(torch.zeros(1, config.search_tokens, config.dim))
        # Stochastic depth grows linearly from 0 in the first block to `drop_path` in the last.
        rates = [drop_path * index / max(config.depth - 1, 1) for index in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)

    def embed_template(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] -> [B, T, C]."""
        return self._patches(images) + self.pos_embed_template

    def embed_search(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """[B, 3, H, W] -> [B, L, C]; where `visible` [B, L] is False the patch is hidden, its position is not."""
        patches = self._patches(images)
        if visible is not None:
            # The authors multiply the embedded patch, bias included, before the position is added.
            patches = patches * visible.unsqueeze(-1).to(patches.dtype)
        return patches + self.pos_embed_search

    def _patches(self, images: Tensor) -> Tensor:
        patches: Tensor = self.patch_embed(images)  # [B, C, h / patch, w / patch]
        return patches.flatten(2).transpose(1, 2)


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over all keys; [..., heads, N, d] each."""
    shape = queries.shape
    if queries.is_cpu and queries.requires_grad and queries.dtype == torch.bfloat16:
        # Backwards, torch's fused routine for the CPU takes several times as long in bfloat16 as these two products.
        q, k, v = (tensor.reshape(-1, *shape[-2:]) for tensor in (queries, keys, values))
        probabilities = (torch.bmm(q, k.transpose(1, 2)) * shape[-1] ** -0.5).softmax(-1)
        return torch.bmm(probabilities.to(v.dtype), v).reshape(shape)
    # The fused routines of torch want four axes.
    q, k, v = (tensor.reshape(-1, *shape[-3:]) for tensor in (queries, keys, values))
    return functional.scaled_dot_product_attention(q, k, v).reshape(shape)
