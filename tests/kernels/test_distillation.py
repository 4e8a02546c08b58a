"""Style and content statistics, forward and backward, against autograd through the reference's losses."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support import DTYPES, assert_as_exact, max_error, poison
from torch import Tensor

from ckd_fast.kernels.distillation import Moments, Reading, distillation_backward, distillation_forward
from ckd_fast.kernels.launch import Operation, T
from ckd_fast.reference.losses import LossConfig, content_loss, style_loss


def poisoned_run(operation: Operation[T]) -> T:
    """Run an operation that makes its memory itself, after filling that memory with NaN."""
    for launch in operation.launches:
        poison(*launch.writes)
    return operation.run()


def forward(x: Tensor, reading: Reading, *, tile_columns: int = 16) -> tuple[Tensor, Moments]:
    """The terms [3], and what the backward needs; all of it written."""
    statistics = poisoned_run(distillation_forward(x, reading, tile_columns=tile_columns))
    moments = statistics.moments
    assert all(tensor.isfinite().all() for tensor in (statistics.sums, moments.shift, moments.m2, moments.q))
    return statistics.terms(), moments


def backward(x: Tensor, moments: Moments, upstream: Tensor, reading: Reading, **tiles: int) -> Tensor:
    return poisoned_run(distillation_backward(x, moments, upstream, reading, **tiles))


def features(
    device: torch.device, dtype: torch.dtype, offset: float = 0.0, tokens: int = 53, channels: int = 40
) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    spread = torch.rand(4, 1, 1, channels, generator=generator) + 0.5
    x = torch.randn(4, 3, tokens, channels, generator=generator) * spread
    x[2:] += 0.7 * x[:2]  # students look like their teachers
    return (x + offset * torch.randn(4, 3, 1, channels, generator=generator).sign()).to(dtype).to(device)


def twin(x: Tensor, config: LossConfig, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """Values [3] and gradients [4, B, N, C] by autograd."""
    parts = [part.clone().requires_grad_() for part in x]
    teacher_rgb, teacher_tir, rgb, tir = parts
    values = torch.stack(
        [style_loss(rgb, tir, config), content_loss(rgb, teacher_rgb, config), content_loss(tir, teacher_tir, config)]
    )
    values.backward(upstream.to(values.dtype))
    return values.detach(), torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in parts])


def reading(config: LossConfig) -> Reading:
    return Reading(
        correction=int(config.unbiased_std),
        eps=config.content_eps,
        move_rgb=config.style_gradient in ("both", "rgb"),
        move_tir=config.style_gradient in ("both", "tir"),
        move_teachers=not config.detach_teachers,
    )


def compared(
    x: Tensor, config: LossConfig | None = None, upstream: tuple[float, ...] = (0.3, -1.1, 0.7), *,
    tile_columns: int = 16, **tiles: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Our gradient, autograd's in float32 and in float64; the values are as exact as autograd's."""
    config, factors = config or LossConfig(), torch.tensor(upstream, device=x.device)
    values, moments = forward(x, reading(config), tile_columns=tile_columns)
    grad = backward(x, moments, factors, reading(config), tile_columns=2 * tile_columns, **tiles)
    plain, exact = (twin(t, config, factors) for t in (x.float(), x.double()))
    assert_as_exact(values, plain[0], exact[0], rounding=2e-7)
    return grad, plain[1], exact[1]


READINGS = {
    "program": LossConfig(),
    "paper": LossConfig.paper(),
    "rgb moves": LossConfig(style_gradient="rgb"),
    "tir moves": LossConfig(style_gradient="tir"),
    "teachers move": LossConfig(detach_teachers=False),
}


@pytest.mark.parametrize("name", READINGS)
def test_readings(device: torch.device, name: str) -> None:
    grad, plain, exact = compared(features(device, torch.float32), READINGS[name])
    for index in range(4):
        assert_as_exact(grad[index], plain[index], exact[index])
        if exact[index].abs().max() == 0:
            assert grad[index].abs().max() == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0.0, 100.0], ids=["centred", "mean-100-std"])
def test_precisions(device: torch.device, dtype: torch.dtype, offset: float) -> None:
    """Sums are float32 whatever the features are; a mean of a hundred deviations costs nothing."""
    grad, plain, exact = compared(features(device, dtype, offset))
    # The gradient is rounded to the type of the features once more.
    rounding = float(torch.finfo(dtype).eps) / 2
    for index in (2, 3):
        bound = 2 * max_error(plain[index], exact[index]) + 2 * rounding * float(exact[index].abs().max())
        assert max_error(grad[index], exact[index]) <= bound
    assert (grad[:2] == 0).all()


def test_equal_features_give_zero(device: torch.device) -> None:
    """Where a student is its teacher nothing is left, and nothing cancels."""
    x = features(device, torch.float32, offset=50.0)
    x[2:] = x[:2]
    values, moments = forward(x, Reading())
    assert values[1:].tolist() == [0, 0]
    grad = backward(x, moments, torch.tensor([0.0, 1.0, 1.0], device=device), Reading())
    assert grad.abs().max() == 0


def test_a_channel_without_spread(device: torch.device) -> None:
    """Constant over the tokens: finite values and gradients, as autograd gives."""
    x = features(device, torch.float32)
    x[2, :, :, 5] = 3.0
    grad, plain, exact = compared(x, upstream=(1.0, 1.0, 1.0))
    assert_as_exact(grad[2], plain[2], exact[2])


@pytest.mark.parametrize("tokens", [2, 64, 153])
def test_sizes(device: torch.device, tokens: int) -> None:
    """Odd ones, in several tiles."""
    x = features(device, torch.float32, tokens=tokens, channels=23)
    assert_as_exact(*compared(x, upstream=(1.0, 0.5, 2.0), tile_columns=8, tile_tokens=16), rounding=2e-7)


def test_two_runs_are_bit_identical(device: torch.device) -> None:
    x = features(device, torch.float32)
    (first, first_moments), (second, second_moments) = (forward(x, Reading()) for _ in range(2))
    assert torch.equal(first, second)
    for field in dataclasses.fields(first_moments):
        assert torch.equal(getattr(first_moments, field.name), getattr(second_moments, field.name))


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    x = features(device, torch.float32)
    with pytest.raises(ValueError, match=r"features is \(3, 3, 53, 40\): expected contiguous \[4, B, N, C\]"):
        distillation_forward(x[:3], Reading())
    with pytest.raises(ValueError, match="one token"):
        distillation_forward(x[:, :, :1].contiguous(), Reading())
    moments = distillation_forward(x, Reading()).out.moments
    with pytest.raises(ValueError, match=r"upstream is torch\.float32 \(2,\)"):
        distillation_backward(x, moments, torch.ones(2, device=device), Reading())
