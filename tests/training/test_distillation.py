"""The fused distillation terms against the reference's, through autograd."""

from __future__ import annotations

import dataclasses
import os

import losses
import pytest
import torch
from runs import MODEL, config
from support import assert_as_exact
from torch import Tensor

from ckd_fast import EngineError
from ckd_fast.reference.losses import BlockDistillation, LossConfig, distillation
from ckd_fast.training.distillation import distillation_of, feature_distillation, fused_distillation

DEVICE = torch.device("cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda")
READINGS = {
    "program": LossConfig(),
    "paper": LossConfig.paper(),
    "rgb moves": LossConfig(style_gradient="rgb"),
    "tir moves": LossConfig(style_gradient="tir"),
    "teachers move": LossConfig(detach_teachers=False),
}


def blocks(dtype: torch.dtype) -> list[Tensor]:
    """Two blocks; the second has lost tokens."""
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(4, 2, tokens, 24, generator=generator) for tokens in (37, 21)]
    return [x.to(DEVICE, dtype).requires_grad_() for x in drawn]


def values_and_gradients(distil: object, dtype: torch.dtype, reading: LossConfig) -> tuple[Tensor, list[Tensor]]:
    leaves = blocks(dtype)
    terms: tuple[BlockDistillation, ...] = distil(leaves, reading)  # type: ignore[operator]
    values = torch.stack([part for term in terms for part in (term.style, term.content_rgb, term.content_tir)])
    weights = torch.tensor([0.5, 1.0, -2.0, 3.0, 0.1, 1.0], device=DEVICE, dtype=values.dtype)
    (values * weights).sum().backward()
    return values.detach(), [leaf.grad for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("name", READINGS)
def test_values_and_gradients_are_the_references(name: str) -> None:
    reading = READINGS[name]
    fused = values_and_gradients(fused_distillation, torch.float32, reading)
    twin = values_and_gradients(distillation, torch.float32, reading)
    exact = values_and_gradients(distillation, torch.float64, reading)
    assert_as_exact(fused[0], twin[0], exact[0], rounding=2e-7)
    assert len(fused[1]) == len(exact[1]) == 2
    for gradient, plain, truth in zip(fused[1], twin[1], exact[1], strict=True):
        assert_as_exact(gradient, plain, truth, rounding=2e-7)


def test_raw_features_are_what_fd_imitates() -> None:
    (block, _) = blocks(torch.float64)
    (terms,) = feature_distillation([block], LossConfig())
    assert terms.style == 0
    assert torch.allclose(terms.content_rgb, (block[2] - block[0]).square().mean())
    (terms.content_rgb + terms.content_tir).backward()
    assert block.grad is not None
    assert block.grad[:2].abs().max() == 0  # teachers stand still
    expected = 2 * (block[3] - block[1]) / block[3].numel()
    assert torch.allclose(block.grad[3], expected.detach())


def test_the_benchmark_times_equal_things() -> None:
    """Both engines of bench/losses.py make the same step on the same features."""
    small = dataclasses.replace(MODEL, depth=1, eliminate_at=())
    results = {}
    for name, distil in losses.ENGINES.items():
        blocks_ = losses.features(small, 2, DEVICE)
        total = losses.step(distil, blocks_, LossConfig())
        assert blocks_[0].grad is not None
        results[name] = (float(total), blocks_[0].grad)
    assert results["fused"][0] == pytest.approx(results["reference"][0], rel=1e-5)
    assert torch.allclose(results["fused"][1], results["reference"][1], atol=1e-7)
    row = losses.measure("small", small, 2, "reference", torch.device("cpu"), 4)
    assert (row.times.count, row.engine, row.peak_mb) == (4, "reference", None)


def test_the_configuration_names_the_engine() -> None:
    cpu = torch.device("cpu")
    assert distillation_of(config(), cpu) is distillation
    assert distillation_of(config(distillation="features"), cpu) is feature_distillation
    with pytest.raises(EngineError, match="needs a GPU, but this run is on cpu"):
        distillation_of(dataclasses.replace(config(), loss_engine="fused"), cpu)
