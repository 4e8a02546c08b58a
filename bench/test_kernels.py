"""Each kernel beside its twin: `pytest bench/test_kernels.py`.

On a GPU at the paper's sizes, in bfloat16. Without one the kernels run in Triton's interpreter at small sizes, whose
times say nothing: `--benchmark-disable` then shows that these entries work. Kernels of a frame are the engine's own
launches; their twins get random inputs of the same sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from common import BOX
from operations import Sides, distilling, eliminating, heads
from plans import frame_planner, random_build
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from ckd_fast.engines.triton.plan import Plan, head_maps
from ckd_fast.kernels.launch import Choice, LaunchSettings, TileRequest, Tiles, run_all, usual_tiles
from ckd_fast.reference import preprocess, twins
from ckd_fast.reference.boxes import clip_box, find_peak, hann_window, to_frame
from ckd_fast.reference.config import PRESETS, ModelConfig
from ckd_fast.reference.elimination import restore
from ckd_fast.reference.head import HeadMaps, search_features
from ckd_fast.reference.vit import attention
from ckd_fast.weights import load_model

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPE = torch.bfloat16 if GPU else torch.float32
CONFIG = PRESETS["base"] if GPU else ModelConfig(
    dim=32, depth=2, heads=2, head_channels=16, eliminate_at=(1,), template_size=32, search_size=64
)  # fmt: skip
DIM, HIDDEN, TEMPLATE, SEARCH = CONFIG.dim, CONFIG.mlp_ratio * CONFIG.dim, CONFIG.template_tokens, CONFIG.search_tokens


def tiles_for(request: TileRequest) -> Choice:
    """Usual tiles on a GPU, as few programs as possible in the interpreter; long sums are split."""
    split = 2 if request.kernel == "linear" and request.depth > 2 * DIM else 1
    if GPU:
        return Choice(usual_tiles(request).tiles, split)
    return Choice(Tiles(64, 64) if request.kernel == "crop" else Tiles(256, 256, 256), split)


SETTINGS = LaunchSettings(tiles_for)


def random(*shape: int) -> Tensor:
    """Normal numbers in the precision of the kernels."""
    return torch.randn(shape, device=DEVICE, dtype=DTYPE)


@cache
def frame() -> Plan:
    """A frame's launches, run once so that each finds its input."""
    plan = frame_planner(random_build(CONFIG, DTYPE, SETTINGS, DEVICE)).plan()
    plan.run()
    return plan


def launched(place: str, result: Tensor | None = None) -> Callable[[], Tensor]:
    """Launches whose place in the frame begins so; what comes out, if it is not what the last one writes first."""
    launches = [launch for launch in frame().launches if launch.name.startswith(place)]
    found = launches[-1].writes[0] if result is None else result

    def run() -> Tensor:
        run_all(launches)
        return found

    return run


def layer(place: str, features: int, depth: int, *, norm: bool = False, **more: Any) -> Sides:
    """A linear layer of both branches with what goes on around it."""
    x, weight, bias = random(2, 1, TEMPLATE + SEARCH, depth), random(2, features, depth), random(2, features).float()
    if norm:
        more |= {"gamma": random(2, depth), "beta": random(2, depth), "eps": 1e-6}
    return launched(place), lambda: twins.linear(x, weight, bias, **more)


def attending() -> Sides:
    q, k, v = heads(CONFIG, random(1))
    return launched("block0.attention"), lambda: attention(q, k, v)


def head() -> Sides:
    """Final norm, three towers and their maps, from the live tokens."""
    student = load_model("random", CONFIG).student().to(DEVICE, DTYPE)
    live = CONFIG.search_tokens_after(CONFIG.depth - 1)
    tokens, order = random(2, 1, TEMPLATE + live, DIM), torch.randperm(SEARCH, device=DEVICE)[:live].expand(2, 1, live)

    def theirs() -> Tensor:
        normed = torch.stack([branch.norm(x) for branch, x in zip(student.branches, tokens, strict=True)])
        score: Tensor = student.head(search_features(restore(normed, order, CONFIG), SEARCH)).score
        return score

    return launched("head", head_maps(frame().maps).score), theirs


def cropping() -> Sides:
    """Both search crops from 640x480 frames, as patches; the twin works on the host, as the reference does."""
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    size = CONFIG.search_size

    def host() -> Tensor:
        cut = torch.from_numpy(preprocess.crop(image, BOX, 4.0, size).image)
        images = preprocess.normalise(torch.stack([cut, cut]))
        return twins.patches(images, CONFIG.patch_size).unsqueeze(1).to(DEVICE, DTYPE)

    return launched("crop"), host


def decoding() -> Sides:
    """From maps to a box; the twin works on the host."""
    grid, size = CONFIG.search_grid, CONFIG.search_size
    maps, factor = torch.rand(1, 5, grid, grid, device=DEVICE), size / preprocess.crop_window(BOX, 4.0).side

    def host() -> Tensor:
        peak = find_peak(HeadMaps(*maps.cpu().split((1, 2, 2), dim=1)), hann_window(grid))
        return torch.tensor([clip_box(to_frame(peak.boxes_cxcywh[0], BOX, factor, size), 480, 640)])

    result = frame().result
    assert result is not None
    return launched("decode", result[:, :4]), host


KINDS: dict[str, Callable[[], Sides]] = {
    "crop": cropping,
    "qkv": lambda: layer("block0.qkv", 3 * DIM, DIM, norm=True),
    "fc1": lambda: layer("block0.fc1", HIDDEN, DIM, norm=True, gelu=True),
    "fc2": lambda: layer("block0.fc2", DIM, HIDDEN, residual=random(2, 1, TEMPLATE + SEARCH, DIM)),
    "attention": attending,
    "attend_score_gather": lambda: eliminating(CONFIG, random(1), 1, SETTINGS),
    "head": head,
    "decode": decoding,
    "distillation": lambda: distilling(16 if GPU else 2, TEMPLATE + SEARCH, DIM, 1, DEVICE),
}


@pytest.mark.parametrize("side", ["kernel", "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_kernel(benchmark: BenchmarkFixture, kind: str, side: str) -> None:
    """Time one side; both must be finite and as large as each other."""
    sides = KINDS[kind]()
    call = sides[side == "plain"]

    def awaited() -> Tensor:
        value = call()
        if GPU:
            torch.cuda.synchronize()
        return value

    benchmark.group = kind
    found: Tensor = benchmark(awaited)
    assert torch.isfinite(found).all()
    assert found.numel() == sides[side != "plain"]().numel()
