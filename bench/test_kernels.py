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

from ckd_fast.engines.triton.weights import pack
from ckd_fast.kernels.attention import attention, deciding_tokens
from ckd_fast.kernels.crop import crop
from ckd_fast.kernels.decode import constants, decode
from ckd_fast.kernels.distillation import Reading, distillation_backward, distillation_forward
from ckd_fast.kernels.elimination import attend_score_gather
from ckd_fast.kernels.head import convolution, gather_taps, last_convolution
from ckd_fast.kernels.launch import Choice, LaunchSettings, TileRequest, Tiles, run_all, usual_tiles
from ckd_fast.kernels.layout import GEOMETRY, REQUEST, STATE, FrameKind, Uploaded
from ckd_fast.kernels.linear import PlainLayer, Rows, RowStatistics, fold_norm, linear
from ckd_fast.reference import elimination as plain
from ckd_fast.reference import preprocess, twins
from ckd_fast.reference.boxes import clip_box, find_peak, hann_window, to_frame
from ckd_fast.reference.config import PRESETS, ModelConfig
from ckd_fast.reference.head import HeadMaps, search_features
from ckd_fast.reference.losses import LossConfig, distillation
from ckd_fast.reference.vit import attention as plain_attention
from ckd_fast.weights import load_model

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPE = torch.bfloat16 if GPU else torch.float32
CONFIG = PRESETS["base"] if GPU else ModelConfig(
    dim=32, depth=2, heads=2, head_channels=16, eliminate_at=(1,), template_size=32, search_size=64
)  # fmt: skip
TEMPLATE, SEARCH = CONFIG.template_tokens, CONFIG.search_tokens
BOX = (288.0, 192.0, 64.0, 96.0)
Sides = tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]


def tiles_for(request: TileRequest) -> Choice:
    """Usual tiles on a GPU, as few programs as possible in the interpreter; long sums are split."""
    split = 2 if request.kernel == "linear" and request.depth > 2 * CONFIG.dim else 1
    if GPU:
        return Choice(usual_tiles(request).tiles, split)
    return Choice(Tiles(64, 64) if request.kernel == "crop" else Tiles(256, 256, 256), split)


SETTINGS = LaunchSettings(tiles_for)


def random(*shape: int) -> torch.Tensor:
    """Normal numbers in the precision of the kernels."""
    return torch.randn(shape, device=DEVICE, dtype=DTYPE)


def rows_of(tokens: torch.Tensor) -> Rows:
    """Tokens with the statistics that a norm needs."""
    return Rows(tokens, RowStatistics(twins.row_statistics(tokens, 64).contiguous(), 64))


def layer(features: int, depth: int, *, gelu: bool = False) -> Sides:
    """A norm, a linear layer of both branches and perhaps its activation."""
    tokens = TEMPLATE + SEARCH
    x, weight, bias = random(2, 1, tokens, depth), random(2, features, depth), torch.randn(2, features, device=DEVICE)
    gamma, beta = random(2, depth), random(2, depth)
    operation = linear(
        rows_of(x), fold_norm(weight, bias, gamma, beta, 1e-6, DTYPE), gelu=gelu, settings=SETTINGS
    )  # fmt: skip
    return (
        lambda: operation.run().tokens,
        lambda: twins.linear(x, weight, bias, gamma=gamma, beta=beta, eps=1e-6, gelu=gelu),
    )


def narrow_layer() -> Sides:
    """The MLP's second layer, its sum split, with residual and statistics."""
    tokens, depth = TEMPLATE + SEARCH, CONFIG.mlp_ratio * CONFIG.dim
    x, weight, residual = random(2, 1, tokens, depth), random(2, CONFIG.dim, depth), random(2, 1, tokens, CONFIG.dim)
    bias = torch.randn(2, CONFIG.dim, device=DEVICE)
    operation = linear(
        Rows(x), PlainLayer(weight, bias), residual=residual, write_statistics=True, settings=SETTINGS
    )  # fmt: skip
    return lambda: operation.run().tokens, lambda: twins.linear(x, weight, bias, residual=residual)


def heads() -> torch.Tensor:
    """Queries, keys and values as views of one tensor [3, 2, 1, heads, N, d]."""
    packed = random(2, 1, TEMPLATE + SEARCH, 3 * CONFIG.dim)
    views: torch.Tensor = packed.unflatten(-1, (3, CONFIG.heads, CONFIG.head_dim)).permute(3, 0, 1, 4, 2, 5)
    return views


def attending() -> Sides:
    """Attention of all tokens."""
    q, k, v = heads()
    operation = attention(q, k, v, settings=SETTINGS)
    return lambda: operation.run().tokens, lambda: plain_attention(q, k, v)


def eliminating() -> Sides:
    """Attention, scores, ranking and gathering of both modalities, as one function."""
    q, k, v = heads()
    mask = plain.template_mask(CONFIG).to(DEVICE)
    keep = CONFIG.search_tokens_after(CONFIG.eliminate_at[0])
    positions = torch.arange(SEARCH, device=DEVICE).expand(2, 1, -1).contiguous()
    operation = attend_score_gather(
        q, k, v, deciding=deciding_tokens(mask), positions=positions.int(), keep=keep, settings=SETTINGS
    )

    def unfused() -> torch.Tensor:
        attended = plain_attention(q, k, v).transpose(2, 3).flatten(3)
        scores = plain.token_scores(plain.template_probabilities(q, k, TEMPLATE), mask, CONFIG, slice(None))
        return plain.keep_tokens(attended, plain.eliminate(0, scores, positions, 0.7).kept_index, TEMPLATE)

    return lambda: operation.run().attended, unfused


def head() -> Sides:
    """Final norm, three towers and their maps, from the live tokens."""
    student = load_model("random", CONFIG).student()
    packed = pack(student, DEVICE, DTYPE)
    student = student.to(DEVICE, DTYPE)
    live = CONFIG.search_tokens_after(CONFIG.depth - 1)
    tokens = random(2, 1, TEMPLATE + live, CONFIG.dim)
    order = torch.randperm(SEARCH, device=DEVICE)[:live].expand(2, 1, live)
    index = torch.arange(TEMPLATE, TEMPLATE + live, dtype=torch.int32, device=DEVICE).expand(2, 1, live).contiguous()
    token_of_cell = torch.full((2, 1, SEARCH), -1, dtype=torch.int32, device=DEVICE).scatter_(2, order, index)
    products = linear(rows_of(tokens), packed.taps, token_index=index, settings=SETTINGS)
    steps = [
        gather_taps(
            products.out.tokens, token_of_cell, packed.taps_bias, template_tokens=TEMPLATE, settings=SETTINGS
        )
    ]  # fmt: skip
    for one in packed.convolutions[:2]:
        steps.append(convolution(steps[-1].out, one, settings=SETTINGS))
    maps = last_convolution(steps[-1].out, packed.convolutions[2], packed.maps, settings=SETTINGS)
    launches = [*products.launches, *(launch for step in steps for launch in step.launches), *maps.launches]

    def ours() -> torch.Tensor:
        run_all(launches)
        return maps.out[:, 0, :1]

    def theirs() -> torch.Tensor:
        normed = torch.stack([branch.norm(x) for branch, x in zip(student.branches, tokens, strict=True)])
        restored = plain.restore(normed, order, CONFIG)
        score: torch.Tensor = student.head(search_features(restored, SEARCH)).score
        return score.flatten(2)

    return ours, theirs


def uploaded(raw: torch.Tensor) -> Uploaded:
    """A frame of 640x480 for both modalities, and one new search in it."""
    geometry = torch.zeros(2, GEOMETRY.value, dtype=torch.float64, device=DEVICE)
    geometry[:, :8] = torch.tensor([480, 640, 0, 0, 480, 640, 0, 255])
    requests = torch.zeros(1, REQUEST.value, dtype=torch.float64, device=DEVICE)
    requests[0, :5] = torch.tensor([*BOX, 4.0])
    present = torch.ones(2, 1, dtype=torch.int32, device=DEVICE)
    return Uploaded(raw, raw, geometry, requests, present, FrameKind())


def cropping() -> Sides:
    """Both search crops from 640x480 frames, as patches; the twin works on the host, as the reference does."""
    frame = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    state = torch.zeros(1, STATE.value, dtype=torch.float64, device=DEVICE)
    size, patch = CONFIG.search_size, CONFIG.patch_size
    operation = crop(
        uploaded(torch.from_numpy(frame).flatten().to(DEVICE)), state, size=size, patch=patch, dtype=DTYPE,
        settings=SETTINGS,
    )  # fmt: skip

    def host() -> torch.Tensor:
        images = preprocess.normalise([preprocess.crop(frame, BOX, 4.0, size).image] * 2)
        return twins.patches(images, patch).unsqueeze(1).to(DEVICE, DTYPE)

    return operation.run, host


def decoding() -> Sides:
    """From maps to a box; the twin works on the host."""
    grid = CONFIG.search_grid
    maps = torch.rand(1, 3, 2, SEARCH, device=DEVICE)
    operation = decode(
        maps, hann_window(grid).flatten().to(DEVICE), uploaded(torch.empty(0, dtype=torch.uint8, device=DEVICE)),
        torch.zeros(1, STATE.value, dtype=torch.float64, device=DEVICE), constants(4.0, DEVICE),
        search_size=CONFIG.search_size,
    )  # fmt: skip
    factor = CONFIG.search_size / preprocess.crop_window(BOX, 4.0).side

    def host() -> torch.Tensor:
        square = maps.cpu().unflatten(-1, (grid, grid))
        peak = find_peak(HeadMaps(square[:, 0, :1], square[:, 2], square[:, 1]), hann_window(grid))
        box = clip_box(to_frame(peak.boxes_cxcywh[0], BOX, factor, CONFIG.search_size), 480, 640)
        return torch.tensor([box], dtype=torch.float64)

    return lambda: operation.run()[:, :4], host


def distilling() -> Sides:
    """Style and content terms of one block and their gradients, batch 16 on a GPU."""
    batch = 16 if GPU else 2
    block = torch.randn(4, batch, TEMPLATE + SEARCH, CONFIG.dim, device=DEVICE, requires_grad=True)
    upstream, reading, config = torch.ones(3, device=DEVICE), Reading(), LossConfig()
    forward = distillation_forward(block.detach(), reading)
    backward = distillation_backward(block.detach(), forward.out.moments, upstream, reading)

    def ours() -> torch.Tensor:
        forward.run()
        return backward.run()

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
