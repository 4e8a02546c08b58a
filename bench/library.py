"""The vendor's library on the products of a launch, for `bench/kernels.py`."""

from __future__ import annotations

import torch
from stage import DEVICE
from timing import Call

from ckd_fast.kernels.head import TOWERS
from ckd_fast.kernels.launch import Launch
from ckd_fast.kernels.tiles import FLOAT8


def library(launch: Launch) -> Call | None:
    """The vendor's routine for the same product."""
    request = launch.request
    if request is None:
        return None
    given, _, multiplied = request.dtype.partition(" as ")
    in_float8 = FLOAT8 in (given, multiplied)
    dtype = torch.bfloat16 if in_float8 else getattr(torch, given)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=DEVICE, dtype=dtype)

    if request.kernel in ("linear", "patch"):
        x, w = (random(request.groups, size, request.depth) for size in (request.rows, request.columns))
        return float8_products(launch.name, x, w) if in_float8 else lambda: torch.bmm(x, w.mT)
    if request.kernel == "attention":
        q, k, v = random(3, 1, request.groups, request.rows, request.depth)
        return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)
    if request.kernel in ("convolution", "last_convolution"):
        grid, channels = round(request.rows**0.5), request.depth // 9
        x = random(request.groups // TOWERS, TOWERS * channels, grid, grid).to(memory_format=torch.channels_last)
        w = random(TOWERS * request.columns, channels, 3, 3).to(memory_format=torch.channels_last)
        return lambda: torch.nn.functional.conv2d(x, w, padding=1, groups=TOWERS)
    return None


def float8_products(name: str, x: torch.Tensor, w: torch.Tensor) -> Call | None:
    """x [S, M, K] @ w [S, F, K]^T in float8, branch by branch: the library has no such product of batches."""
    if x.shape[2] % 16 or w.shape[1] % 16:
        print(f"{name}: no library beside it, whose float8 takes multiples of 16, not {w.shape[1]} x {x.shape[2]}")
        return None
    pairs = [(a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).T) for a, b in zip(x, w, strict=True)]
    scale = torch.ones((), device=x.device)
    return lambda: [
        torch._scaled_mm(a, b, scale, scale, out_dtype=torch.bfloat16, use_fast_accum=True)  # noqa: SLF001
        for a, b in pairs
    ]
