"""Each step of a frame on its own: `pytest bench/test_steps.py`; random weights, the paper's sizes and `tiny`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from common import BOX
from pytest_benchmark.fixture import BenchmarkFixture

from ckd_fast.reference.boxes import find_peak, hann_window, to_frame
from ckd_fast.reference.config import PRESETS, ModelConfig
from ckd_fast.reference.elimination import eliminate, keep_tokens, template_mask, template_probabilities, token_scores
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.model import Student
from ckd_fast.reference.preprocess import crop, normalise
from ckd_fast.reference.vit import Block, attention
from ckd_fast.weights import load_model


@pytest.fixture(scope="module", params=["base", "tiny"])
def student(request: pytest.FixtureRequest) -> Student:
    return load_model("random", request.param).student()


@pytest.fixture(scope="module")
def config(student: Student) -> ModelConfig:
    return student.config


@pytest.fixture(scope="module")
def tokens(config: ModelConfig) -> torch.Tensor:
    return torch.randn(2, 1, config.template_tokens + config.search_tokens, config.dim)


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


def test_crop(benchmark: BenchmarkFixture) -> None:
    """Two search crops of a 640x480 pair, normalised."""
    frame = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    size = PRESETS["base"].search_size
    images = benchmark(lambda: normalise([crop(frame, BOX, 4.0, size).image, crop(frame, BOX, 4.0, size).image]))
    assert images.shape == (2, 3, size, size)


def test_patch_embedding(benchmark: BenchmarkFixture, student: Student, config: ModelConfig) -> None:
    images = torch.randn(2, 1, 3, config.search_size, config.search_size)
    assert benchmark(student.embed_search, images).shape == (2, 1, config.search_tokens, config.dim)


def test_block(benchmark: BenchmarkFixture, student: Student, tokens: torch.Tensor) -> None:
    """One block of both branches, before any elimination."""

    def block() -> torch.Tensor:
        layers: list[Block] = [branch.blocks[0] for branch in student.branches]  # type: ignore[misc]
        x = tokens
        q, k, v = torch.stack([b.queries_keys_values(t) for b, t in zip(layers, x, strict=True)], dim=1)
        x = x + torch.stack([b.projection(a) for b, a in zip(layers, attention(q, k, v), strict=True)])
        return x + torch.stack([b.mlp(t) for b, t in zip(layers, x, strict=True)])

    assert benchmark(block).shape == tokens.shape


def test_elimination(benchmark: BenchmarkFixture, config: ModelConfig, tokens: torch.Tensor) -> None:
    """Scores, ranking and gathering of the first elimination."""
    queries, keys = torch.randn(2, 2, 1, config.heads, tokens.shape[2], config.head_dim)
    mask = template_mask(config)
    positions = torch.arange(config.search_tokens).expand(2, 1, -1)

    def step() -> torch.Tensor:
        probabilities = template_probabilities(queries, keys, config.template_tokens)
        scores = token_scores(probabilities, mask, config, slice(None))
        done = eliminate(0, scores, positions, config.keep_ratio)
        return keep_tokens(tokens, done.kept_index, config.template_tokens)

    assert benchmark(step).shape[2] == 244


def test_head(benchmark: BenchmarkFixture, student: Student, config: ModelConfig) -> None:
    """Three towers on the features of both modalities."""
    features = torch.randn(1, 2 * config.dim, config.search_grid, config.search_grid)
    assert benchmark(student.head, features).score.shape == (1, 1, config.search_grid, config.search_grid)


def test_decode(benchmark: BenchmarkFixture) -> None:
    maps = HeadMaps(*(torch.rand(1, channels, 16, 16) for channels in (1, 2, 2)))
    window = hann_window(16)
    box = benchmark(lambda: to_frame(find_peak(maps, window).boxes_cxcywh[0], BOX, 0.8, 256))
    assert len(box) == 4
