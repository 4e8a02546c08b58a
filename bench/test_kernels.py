"""Each kernel beside its twin: `pytest bench/test_kernels.py`.

On a GPU at the paper's sizes, in bfloat16. Without one the kernels run in Triton's interpreter at small sizes, whose
times say nothing: `--benchmark-disable` then shows that these entries work.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from ckd_fast.engines.packing import pack
from ckd_fast.kernels.attention import attention, template_rows
from ckd_fast.kernels.crop import GEOMETRY, GIVEN, STATE, FrameKind, crop
from ckd_fast.kernels.decode import constants, decode
from ckd_fast.kernels.distillation import Reading, distillation_backward, distillation_forward
from ckd_fast.kernels.elimination import attend_score_gather
from ckd_fast.kernels.head import convolution, gather_taps, last_convolution
from ckd_fast.kernels.linear import RowStatistics, Tiles, fold_norm, linear
from ckd_fast.reference import elimination as plain
from ckd_fast.reference import fused, preprocess
from ckd_fast.reference.boxes import clip_box, find_peak, hann_window, to_frame
from ckd_fast.reference.config import PRESETS, ModelConfig
from ckd_fast.reference.head import HeadMaps, search_features
from ckd_fast.reference.losses import LossConfig, distillation
from ckd_fast.reference.vit import attention as plain_attention
from ckd_fast.weights import load_model

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPE = torch.bfloat16 if GPU else torch.float32
TILES = Tiles() if GPU else Tiles(256, 256, 256)
CONFIG = PRESETS["base"] if GPU else ModelConfig(
    dim=32, depth=2, heads=2, head_channels=16, eliminate_at=(1,), template_size=32, search_size=64
)  # fmt: skip
TEMPLATE, SEARCH = CONFIG.template_tokens, CONFIG.search_tokens
BOX = (288.0, 192.0, 64.0, 96.0)
Sides = tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]


def random(*shape: int) -> torch.Tensor:
    """Normal numbers in the precision of the kernels."""
    return torch.randn(shape, device=DEVICE, dtype=DTYPE)


def layer(features: int, depth: int, *, gelu: bool = False) -> Sides:
    """A norm, a linear layer of both branches and perhaps its activation."""
    tokens = TEMPLATE + SEARCH
    x, weight, bias = random(2, 1, tokens, depth), random(2, features, depth), torch.randn(2, features, device=DEVICE)
    gamma, beta = random(2, depth), random(2, depth)
    folded = fold_norm(weight, bias, gamma, beta, 1e-6, DTYPE)
    statistics = RowStatistics(fused.row_statistics(x, 64).contiguous(), 64)
    return (
        lambda: linear(x, folded.weight, folded.bias, norm=folded, statistics=statistics, gelu=gelu, tiles=TILES),
        lambda: fused.linear(x, weight, bias, gamma=gamma, beta=beta, eps=1e-6, gelu=gelu),
    )


def narrow_layer() -> Sides:
    """The MLP's second layer, its sum split, with residual and statistics."""
    tokens, depth = TEMPLATE + SEARCH, CONFIG.mlp_ratio * CONFIG.dim
    x, weight, residual = random(2, 1, tokens, depth), random(2, CONFIG.dim, depth), random(2, 1, tokens, CONFIG.dim)
    bias = torch.randn(2, CONFIG.dim, device=DEVICE)
    count = -(-CONFIG.dim // TILES.columns)
    statistics = RowStatistics(torch.empty(2, 1, tokens, count, 2, device=DEVICE), TILES.columns)
    return (
        lambda: linear(x, weight, bias, residual=residual, out_statistics=statistics, split_k=2, tiles=TILES),
        lambda: fused.linear(x, weight, bias, residual=residual),
    )


def heads() -> torch.Tensor:
    """Queries, keys and values as views of one tensor [3, 2, 1, heads, N, d]."""
    packed = random(2, 1, TEMPLATE + SEARCH, 3 * CONFIG.dim)
    views: torch.Tensor = packed.unflatten(-1, (3, CONFIG.heads, CONFIG.head_dim)).permute(3, 0, 1, 4, 2, 5)
    return views


def attending() -> Sides:
    """Attention of all tokens."""
    q, k, v = heads()
    return lambda: attention(q, k, v), lambda: plain_attention(q, k, v)


def eliminating() -> Sides:
    """Attention, scores, ranking and gathering of both modalities: kernel 4 as one function."""
    q, k, v = heads()
    mask = plain.template_mask(CONFIG).to(DEVICE)
    rows, keep = template_rows(mask), CONFIG.search_tokens_after(CONFIG.eliminate_at[0])
    positions = torch.arange(SEARCH, device=DEVICE).expand(2, 1, -1).contiguous()
    short = positions.int()

    def unfused() -> torch.Tensor:
        attended = plain_attention(q, k, v).transpose(2, 3).flatten(3)
        scores = plain.token_scores(plain.template_probabilities(q, k, TEMPLATE), mask, CONFIG, slice(None))
        return plain.keep_tokens(attended, plain.eliminate(0, scores, positions, 0.7).kept_index, TEMPLATE)

    return lambda: attend_score_gather(q, k, v, rows=rows, positions=short, keep=keep).attended, unfused


def head() -> Sides:
    """Final norm, three towers and their maps, from the live tokens."""
    student = load_model("random", CONFIG).student()
    packed = pack(student, DEVICE, DTYPE)
    student = student.to(DEVICE, DTYPE)
    live = CONFIG.search_tokens_after(CONFIG.depth - 1)
    tokens = random(2, 1, TEMPLATE + live, CONFIG.dim)
    order = torch.randperm(SEARCH, device=DEVICE)[:live].expand(2, 1, live)
    rows = torch.arange(TEMPLATE, TEMPLATE + live, dtype=torch.int32, device=DEVICE).expand(2, 1, live).contiguous()
    place = torch.full((2, 1, SEARCH), -1, dtype=torch.int32, device=DEVICE).scatter_(2, order, rows)
    statistics = RowStatistics(fused.row_statistics(tokens, 64).contiguous(), 64)
    taps, last = packed.taps, packed.convolutions[-1]
    few = Tiles(columns=32) if GPU else TILES

    def ours() -> torch.Tensor:
        products = linear(tokens, taps.weight, taps.bias, norm=taps, statistics=statistics, rows=rows, tiles=TILES)
        x = gather_taps(products, place, packed.taps_bias, template_tokens=TEMPLATE)
        for one in packed.convolutions[:2]:
            x = convolution(x, one.weight, one.bias, tiles=few)
        return last_convolution(x, last.weight, last.bias, packed.map_weight, packed.map_bias)[:, 0, :1]

    def theirs() -> torch.Tensor:
        normed = torch.stack([branch.norm(x) for branch, x in zip(student.branches, tokens, strict=True)])
        restored = plain.restore(normed, order, CONFIG)
        score: torch.Tensor = student.head(search_features(restored, SEARCH)).score
        return score.flatten(2)

    return ours, theirs


def cropping() -> Sides:
    """Both search crops from 640x480 frames, as patches; the twin works on the host, as the reference does."""
    frame = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    raw = torch.from_numpy(frame).flatten().to(DEVICE)
    geometry = torch.zeros(2, GEOMETRY, dtype=torch.float64, device=DEVICE)
    geometry[:, :8] = torch.tensor([480, 640, 0, 0, 480, 640, 0, 255])
    given = torch.zeros(1, GIVEN, dtype=torch.float64, device=DEVICE)
    given[0, :5] = torch.tensor([*BOX, 4.0])
    state = torch.zeros(1, STATE, dtype=torch.float64, device=DEVICE)
    present = torch.ones(2, 1, dtype=torch.int32, device=DEVICE)
    size, patch = CONFIG.search_size, CONFIG.patch_size
    out = torch.empty(2, 1, SEARCH, 3 * patch * patch, device=DEVICE, dtype=DTYPE)
    tiles = {} if GPU else {"tile_rows": 64, "tile_columns": 64}

    def host() -> torch.Tensor:
        images = preprocess.normalise([preprocess.crop(frame, BOX, 4.0, size).image] * 2)
        return fused.patches(images, patch).unsqueeze(1).to(DEVICE, DTYPE)

    kind = FrameKind()
    return lambda: crop(
        raw, raw, geometry, given, state, present, out, kind=kind, size=size, patch=patch, **tiles
    ), host


def decoding() -> Sides:
    """From maps to a box; the twin works on the host."""
    grid = CONFIG.search_grid
    maps = torch.rand(1, 3, 2, SEARCH, device=DEVICE)
    geometry = torch.zeros(2, GEOMETRY, dtype=torch.float64, device=DEVICE)
    geometry[0, :2] = torch.tensor([480, 640])
    given = torch.zeros(1, GIVEN, dtype=torch.float64, device=DEVICE)
    given[0, :5] = torch.tensor([*BOX, 4.0])
    state, result = (torch.zeros(1, count, dtype=torch.float64, device=DEVICE) for count in (STATE, 6))
    window, fixed = hann_window(grid).flatten().to(DEVICE), constants(4.0, DEVICE)
    factor = CONFIG.search_size / preprocess.crop_window(BOX, 4.0).side

    def host() -> torch.Tensor:
        square = maps.cpu().unflatten(-1, (grid, grid))
        peak = find_peak(HeadMaps(square[:, 0, :1], square[:, 2], square[:, 1]), hann_window(grid))
        box = clip_box(to_frame(peak.boxes_cxcywh[0], BOX, factor, CONFIG.search_size), 480, 640)
        return torch.tensor([box], dtype=torch.float64)

    return (
        lambda: decode(maps, window, geometry, given, state, fixed, result, search_size=CONFIG.search_size)[:, :4],
        host,
    )


def distilling() -> Sides:
    """Style and content terms of one block and their gradients, batch 16 on a GPU."""
    batch = 16 if GPU else 2
    block = torch.randn(4, batch, TEMPLATE + SEARCH, CONFIG.dim, device=DEVICE, requires_grad=True)
    upstream, reading, config = torch.ones(3, device=DEVICE), Reading(), LossConfig()

    def ours() -> torch.Tensor:
        _, moments = distillation_forward(block.detach(), reading)
        return distillation_backward(block.detach(), moments, upstream, reading)

    def theirs() -> torch.Tensor:
        (found,) = distillation([block], config)
        (gradient,) = torch.autograd.grad(found.style + found.content_rgb + found.content_tir, block)
        return gradient

    return ours, theirs


KINDS: dict[str, Callable[[], Sides]] = {
    "crop": cropping,
    "qkv": lambda: layer(3 * CONFIG.dim, CONFIG.dim),
    "fc1": lambda: layer(CONFIG.mlp_ratio * CONFIG.dim, CONFIG.dim, gelu=True),
    "fc2": narrow_layer,
    "attention": attending,
    "attend_score_gather": eliminating,
    "head": head,
    "decode": decoding,
    "distillation": distilling,
}


@pytest.mark.parametrize("side", ["kernel", "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_kernel(benchmark: BenchmarkFixture, kind: str, side: str) -> None:
    """Time one side; both must be finite and as large as each other."""
    sides = KINDS[kind]()
    call = sides[side == "plain"]

    def awaited() -> torch.Tensor:
        value = call()
        if GPU:
            torch.cuda.synchronize()
        return value

    benchmark.group = kind
    found: torch.Tensor = benchmark(awaited)
    assert torch.isfinite(found).all()
    assert found.numel() == sides[side != "plain"]().numel()
