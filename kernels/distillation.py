"""Style and content terms of one block, forward and backward, each in one pass over the features.

For features F of the rgb teacher, tir teacher, rgb student and tir student, [4, B, N, C]; per sample and channel over
the N tokens, with mean mu, M2 = sum (F - mu)^2, sigma = sqrt(M2 / (N - correction)), r = 1 / sqrt(M2 / N + eps) and
z = (F - mu) r:

    style      = mean over B, C of (mu_rgb - mu_tir)^2 + (sigma_rgb - sigma_tir)^2           of the students
    content_m  = mean over B, C, N of d_m^2,   d_m = z_student - z_teacher                    m = rgb, tir

A program holds all tokens of a few channels of all four tensors on chip, so nothing is read twice. Nothing cancels
either: values are shifted by the first token before they are summed, and d is a difference of features, not of sums.

Per channel, the gradient is an affine function of the features. With upstream gradients g, n = B C and
q = mean over tokens of d z:

    dF_rgb  = g_style/n (2 (mu_rgb - mu_tir) / N + 2 (sigma_rgb - sigma_tir) (F - mu) / ((N - correction) sigma_rgb))
            + g_content/n 2/N r (d - q z)
    dF_teacher = g_content/n 2/N r_t (-d - q_t z_t),   q_t = mean of -d z_t       where teachers are not detached
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, Operation, check

FEATURES = 4  # rgb teacher, tir teacher, rgb student, tir student


@dataclass(frozen=True)
class Reading:
    """Which variant of the terms to compute; see `LossConfig` in the reference."""

    correction: int = 1  # 1 for the unbiased sigma, 0 for the biased one
    eps: float = 1e-5  # inside the root of the instance norm
    # which students get gradients of the style term
    move_rgb: bool = True
    move_tir: bool = True
    move_teachers: bool = False  # whether teachers get gradients of the content term


@dataclass(frozen=True)
class Moments:
    """What the backward needs, [4, B, C] float32 each: mean minus first token, M2, and q of the formula."""

    shift: Tensor
    m2: Tensor
    q: Tensor


@triton.jit
def _centred(x_ptr, which, sample, samples, token, channel, tokens, channels, ok):
    """First token, mean minus first token, M2, and centred values of all tokens of a few channels."""
    base = (which * samples + sample).to(tl.int64) * tokens * channels
    first = tl.load(x_ptr + base + channel, mask=channel < channels, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + base + token[:, None] * channels + channel[None, :], mask=ok, other=0.0).to(tl.float32)
    shifted = tl.where(ok, x - first[None, :], 0.0)
    shift = tl.sum(shifted, 0) / tokens
    centred = tl.where(ok, shifted - shift[None, :], 0.0)
    return first, shift, tl.sum(centred * centred, 0), centred


@triton.jit
def _forward_kernel(
    x_ptr,  # [4, B, N, C]
    shift_ptr,  # [4, B, C] float32; m2 and q alike
    m2_ptr,
    q_ptr,
    partial_ptr,  # [3, B, column tiles] float32: style, content_rgb, content_tir
    samples,  # B
    tokens,  # N
    channels,  # C
    eps,
    CORRECTION: tl.constexpr,
    TOKENS: tl.constexpr,  # tokens rounded up to a power of two
    COLUMNS: tl.constexpr,
):
    """All tokens of a few channels of one sample."""
    tile, sample = tl.program_id(0), tl.program_id(1)
    token, channel = tl.arange(0, TOKENS), tile * COLUMNS + tl.arange(0, COLUMNS)
    ok_channel = channel < channels
    ok = (token < tokens)[:, None] & ok_channel[None, :]
    at_partial = sample * tl.num_programs(0) + tile
    many = samples * tl.num_programs(0)
    style = tl.zeros((COLUMNS,), tl.float32)
    sign = 1.0
    mean_gap = tl.zeros((COLUMNS,), tl.float32)
    sigma_gap = tl.zeros((COLUMNS,), tl.float32)
    for modality in tl.static_range(2):
        _, shift_t, m2_t, teacher = _centred(x_ptr, modality, sample, samples, token, channel, tokens, channels, ok)
        first_s, shift_s, m2_s, student = _centred(
            x_ptr, modality + 2, sample, samples, token, channel, tokens, channels, ok
        )
        z_t = teacher * tl.math.rsqrt(tl.where(ok_channel, m2_t / tokens + eps, 1.0))[None, :]
        z_s = student * tl.math.rsqrt(tl.where(ok_channel, m2_s / tokens + eps, 1.0))[None, :]
        d = tl.where(ok, z_s - z_t, 0.0)
        content = tl.where(ok_channel, tl.sum(d * d, 0) / tokens, 0.0)
        tl.store(partial_ptr + (1 + modality) * many + at_partial, tl.sum(content, 0))
        at = sample * channels + channel
        plane = samples * channels
        tl.store(shift_ptr + modality * plane + at, shift_t, mask=ok_channel)
        tl.store(m2_ptr + modality * plane + at, m2_t, mask=ok_channel)
        tl.store(q_ptr + modality * plane + at, -tl.sum(d * z_t, 0) / tokens, mask=ok_channel)
        tl.store(shift_ptr + (modality + 2) * plane + at, shift_s, mask=ok_channel)
        tl.store(m2_ptr + (modality + 2) * plane + at, m2_s, mask=ok_channel)
        tl.store(q_ptr + (modality + 2) * plane + at, tl.sum(d * z_s, 0) / tokens, mask=ok_channel)
        mean_gap += sign * (first_s + shift_s)
        sigma_gap += sign * tl.sqrt(m2_s / (tokens - CORRECTION))
        sign = -sign
    style = tl.where(ok_channel, mean_gap * mean_gap + sigma_gap * sigma_gap, 0.0)
    tl.store(partial_ptr + at_partial, tl.sum(style, 0))


@triton.jit
def _backward_kernel(
    x_ptr,  # [4, B, N, C]
    shift_ptr,
    m2_ptr,
    q_ptr,
    upstream_ptr,  # [3] float32: gradients of style, content_rgb, content_tir
    grad_ptr,  # [4, B, N, C]
    samples,
    tokens,
    channels,
    eps,
    CORRECTION: tl.constexpr,
    MOVE_RGB: tl.constexpr,
    MOVE_TIR: tl.constexpr,
    MOVE_TEACHERS: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Some tokens of some channels of one sample, all four gradients."""
    tile, part, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    token, channel = part * TOKENS + tl.arange(0, TOKENS), tile * COLUMNS + tl.arange(0, COLUMNS)
    ok_channel = channel < channels
    ok = (token < tokens)[:, None] & ok_channel[None, :]
    plane, at = samples * channels, sample * channels + channel
    scale = 1.0 / (samples * channels)
    g_style = tl.load(upstream_ptr) * scale
    stride = tokens * channels  # of one sample
    first_rgb = tl.load(x_ptr + (2 * samples + sample).to(tl.int64) * stride + channel, mask=ok_channel, other=0.0)
    first_tir = tl.load(x_ptr + (3 * samples + sample).to(tl.int64) * stride + channel, mask=ok_channel, other=0.0)
    mean_rgb = first_rgb.to(tl.float32) + tl.load(shift_ptr + 2 * plane + at, mask=ok_channel, other=0.0)
    mean_tir = first_tir.to(tl.float32) + tl.load(shift_ptr + 3 * plane + at, mask=ok_channel, other=0.0)
    sigma_rgb = tl.sqrt(tl.load(m2_ptr + 2 * plane + at, mask=ok_channel, other=1.0) / (tokens - CORRECTION))
    sigma_tir = tl.sqrt(tl.load(m2_ptr + 3 * plane + at, mask=ok_channel, other=1.0) / (tokens - CORRECTION))
    for modality in tl.static_range(2):
        g_content = tl.load(upstream_ptr + 1 + modality) * scale * (2.0 / tokens)
        base_t = (modality * samples + sample).to(tl.int64) * stride
        base_s = ((modality + 2) * samples + sample).to(tl.int64) * stride
        inside = token[:, None] * channels + channel[None, :]
        # Centred as in the forward: minus the first token, minus the mean of what is left.
        first_t = tl.load(x_ptr + base_t + channel, mask=ok_channel, other=0.0).to(tl.float32)
        first_s = tl.load(x_ptr + base_s + channel, mask=ok_channel, other=0.0).to(tl.float32)
        shift_t = tl.load(shift_ptr + modality * plane + at, mask=ok_channel, other=0.0)
        shift_s = tl.load(shift_ptr + (modality + 2) * plane + at, mask=ok_channel, other=0.0)
        m2_t = tl.load(m2_ptr + modality * plane + at, mask=ok_channel, other=1.0)
        m2_s = tl.load(m2_ptr + (modality + 2) * plane + at, mask=ok_channel, other=1.0)
        q_s = tl.load(q_ptr + (modality + 2) * plane + at, mask=ok_channel, other=0.0)
        r_t, r_s = tl.math.rsqrt(m2_t / tokens + eps), tl.math.rsqrt(m2_s / tokens + eps)
        student = tl.load(x_ptr + base_s + inside, mask=ok, other=0.0).to(tl.float32) - first_s[None, :]
        teacher = tl.load(x_ptr + base_t + inside, mask=ok, other=0.0).to(tl.float32) - first_t[None, :]
        student, teacher = student - shift_s[None, :], teacher - shift_t[None, :]
        z_s, z_t = student * r_s[None, :], teacher * r_t[None, :]
        d = z_s - z_t
        grad = g_content * r_s[None, :] * (d - q_s[None, :] * z_s)
        if (MOVE_RGB and modality == 0) or (MOVE_TIR and modality == 1):
            sigma = sigma_rgb if modality == 0 else sigma_tir
            other = sigma_tir if modality == 0 else sigma_rgb
            gap = mean_rgb - mean_tir if modality == 0 else mean_tir - mean_rgb
            # Where sigma is 0 it has no gradient.
            spread = tl.where(sigma > 0, sigma, 1.0)
            slope = tl.where(sigma > 0, (sigma - other) / ((tokens - CORRECTION) * spread), 0.0)
            grad += g_style * 2.0 * (gap[None, :] / tokens + slope[None, :] * student)
        tl.store(grad_ptr + base_s + inside, grad.to(grad_ptr.dtype.element_ty), mask=ok)
        if MOVE_TEACHERS:
            q_t = tl.load(q_ptr + modality * plane + at, mask=ok_channel, other=0.0)
            grad_t = g_content * r_t[None, :] * (-d - q_t[None, :] * z_t)
        else:
            grad_t = tl.zeros_like(grad)
        tl.store(grad_ptr + base_t + inside, grad_t.to(grad_ptr.dtype.element_ty), mask=ok)


def _check(features: Tensor) -> tuple[int, int, int]:
    if features.dim() != 4 or features.shape[0] != FEATURES or not features.is_contiguous():
        raise ValueError(f"features is {tuple(features.shape)}: expected contiguous [4, B, N, C]")
    if features.shape[2] < 2:
        raise ValueError("features of one token have no spread")
    return features.shape[1], features.shape[2], features.shape[3]


@dataclass(frozen=True)
class Statistics:
    """The forward's result for one block."""

    # style, content_rgb and content_tir, summed per sample and tile of channels [3, B, column tiles] float32
    sums: Tensor
    moments: Moments  # for the backward

    def terms(self) -> Tensor:
        """Style, content_rgb, content_tir: [3] float32."""
        _, samples, channels = self.moments.shift.shape
        return self.sums.sum((1, 2)) / (samples * channels)


def distillation_forward(
    features: Tensor, reading: Reading, *, tile_columns: int = 16, warps: int = 8
) -> Operation[Statistics]:
    """Style and content of one block.

    Args:
        features: rgb teacher, tir teacher, rgb student, tir student [4, B, N, C].
        reading: what is computed.
        tile_columns: channels of one program, which holds all of their tokens.
        warps: of one program.
    """
    samples, tokens, channels = _check(features)
    column_tiles = triton.cdiv(channels, tile_columns)

    def made(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=features.device)

    shift, m2, q = (made(FEATURES, samples, channels) for _ in range(3))
    sums = made(3, samples, column_tiles)
    launch = Launch(
        name="distillation forward",
        what=f"{samples} x {tokens} x {channels}",
        kernel=_forward_kernel,
        grid=(column_tiles, samples),  # one program per few channels of one sample
        arguments={
            "x_ptr": features, "shift_ptr": shift, "m2_ptr": m2, "q_ptr": q, "partial_ptr": sums, "samples": samples,
            "tokens": tokens, "channels": channels, "eps": reading.eps, "CORRECTION": reading.correction,
            "TOKENS": triton.next_power_of_2(tokens), "COLUMNS": tile_columns,
        },
        options={"num_warps": warps, "enable_fp_fusion": False},  # equal features differ by exactly 0
        reads=(features,),
        writes=(shift, m2, q, sums),
        flops=12.0 * features.numel(),
    )  # fmt: skip
    return Operation(Statistics(sums, Moments(shift, m2, q)), (launch,))


def distillation_backward(
    features: Tensor,
    moments: Moments,
    upstream: Tensor,
    reading: Reading,
    *,
    tile_tokens: int = 32,
    tile_columns: int = 64,
) -> Operation[Tensor]:
    """Gradients of all four features [4, B, N, C].

    Args:
        features, moments, reading: of the forward.
        upstream: gradients of style, content_rgb and content_tir [3] float32, on the device.
        tile_tokens, tile_columns: per program.
    """
    samples, tokens, channels = _check(features)
    check("upstream", upstream, torch.float32, (3,))
    grad = torch.empty_like(features)
    launch = Launch(
        name="distillation backward",
        what=f"{samples} x {tokens} x {channels}",
        kernel=_backward_kernel,
        # One program per tile of tokens and channels of one sample.
        grid=(triton.cdiv(channels, tile_columns), triton.cdiv(tokens, tile_tokens), samples),
        arguments={
            "x_ptr": features, "shift_ptr": moments.shift, "m2_ptr": moments.m2, "q_ptr": moments.q,
            "upstream_ptr": upstream, "grad_ptr": grad, "samples": samples, "tokens": tokens, "channels": channels,
            "eps": reading.eps, "CORRECTION": reading.correction, "MOVE_RGB": reading.move_rgb,
            "MOVE_TIR": reading.move_tir, "MOVE_TEACHERS": reading.move_teachers, "TOKENS": tile_tokens,
            "COLUMNS": tile_columns,
        },
        options={"num_warps": 4, "enable_fp_fusion": False},
        reads=(features, moments.shift, moments.m2, moments.q, upstream),
        writes=(grad,),
        flops=20.0 * features.numel(),
    )  # fmt: skip
    return Operation(grad, (launch,))
