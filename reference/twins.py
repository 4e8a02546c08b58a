"""What each kernel computes, in plain torch: the twins that tests and benchmarks compare with.

A twin computes in the precision of its input, as PyTorch would without the kernel: products in the type of the input
with float32 accumulation, norms and statistics in float32 (float64 for float64 input).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

FLOAT8_LARGEST = 448.0  # of e4m3


def wide(tensor: Tensor) -> Tensor:
    """float64 stays, everything else becomes float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def take_tokens(x: Tensor, token_index: Tensor | None) -> Tensor:
    """[S, B, N, C] and an index [S, B, M] -> [S, B, M, C]."""
    if token_index is None:
        return x
    return x.gather(2, token_index.long().unsqueeze(-1).expand(*token_index.shape, x.shape[-1]))


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 0.0,
    gelu: bool = False,
    residual: Tensor | None = None,
    token_index: Tensor | None = None,
) -> Tensor:
    """One layer of S branches: [LayerNorm,] linear, [GELU,] [residual]; see `kernels/linear.py`.

    Args:
        x: [S, B, N, K].
        weight, bias: [S, F, K], [S, F].
        gamma, beta, eps: of a LayerNorm in front [S, K].
        gelu: apply it.
        residual: [S, B, N, F], or [S, M, F] for all targets.
        token_index: [S, B, M] tokens to take from x and from a residual per target.
    """
    a = take_tokens(x, token_index)
    if gamma is not None and beta is not None:
        normed = [
            functional.layer_norm(wide(one), (x.shape[-1],), wide(g), wide(b), eps)
            for one, g, b in zip(a, gamma, beta, strict=True)
        ]
        a = torch.stack(normed).to(x.dtype)
    y = torch.stack([functional.linear(one, w, b.to(x.dtype)) for one, w, b in zip(a, weight, bias, strict=True)])
    if gelu:
        y = functional.gelu(y)
    if residual is not None:
        y = y + (take_tokens(residual, token_index) if residual.dim() == 4 else residual[:, None])
    return y


def float8(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale rounded to float8 (e4m3), what is too large to its largest value, in the type of x."""
    return (x / scale).clamp(-FLOAT8_LARGEST, FLOAT8_LARGEST).float().to(torch.float8_e4m3fn).to(x.dtype)


def float8_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    input_scale: Tensor,
    *,
    eps: float | None = None,
    gelu: bool = False,
    residual: Tensor | None = None,
    token_index: Tensor | None = None,
) -> Tensor:
    """One layer of S branches with products in float8: [LayerNorm,] linear, [GELU,] [residual].

    Args:
        x: [S, B, N, K]; without a norm already divided by its scale and rounded.
        weight, bias: [S, F, K] before it is rounded, and [S, F]; scale and shift of a norm included.
        input_scale: what the (normed) input is divided by [S].
        eps: of a LayerNorm in front.
        gelu, residual, token_index: as in `linear`.
    """
    a = wide(take_tokens(x, token_index))
    if eps is not None:
        a = float8(functional.layer_norm(a, (x.shape[-1],), eps=eps), input_scale.to(a.dtype)[:, None, None, None])
    w = weight.to(a.dtype)
    weight_scale = w.abs().amax(-1, keepdim=True) / FLOAT8_LARGEST
    products = a @ float8(w, weight_scale).transpose(-1, -2)[:, None]
    y = (
        products * (weight_scale[..., 0] * input_scale.to(a.dtype)[:, None])[:, None, None]
        + bias.to(a.dtype)[:, None, None]
    )
    if gelu:
        y = functional.gelu(y)
    if residual is not None:
        y = y + (take_tokens(residual, token_index) if residual.dim() == 4 else residual[:, None])
    return y


def row_statistics(x: Tensor, tile: int) -> Tensor:
    """Mean and sum of squared deviations of rows over tiles of columns: [..., C] -> [..., tiles, 2]."""
    parts = [wide(part) for part in x.split(tile, dim=-1)]
    means = [part.mean(-1) for part in parts]
    squares = [(p - m.unsqueeze(-1)).square().sum(-1) for p, m in zip(parts, means, strict=True)]
    return torch.stack([torch.stack(means, -1), torch.stack(squares, -1)], dim=-1)


def patches(images: Tensor, patch: int) -> Tensor:
    """[..., 3, H, W] -> [..., H W / patch^2, 3 patch^2], values in the order of a convolution's flattened weight."""
    *lead, channels, height, width = images.shape
    cut = images.reshape(*lead, channels, height // patch, patch, width // patch, patch)
    n = len(lead)
    cut = cut.permute(*range(n), n + 1, n + 3, n, n + 2, n + 4)
    return cut.reshape(*lead, (height // patch) * (width // patch), channels * patch * patch)
