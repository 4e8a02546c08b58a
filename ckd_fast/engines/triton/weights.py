"""A student's weights as the kernels read them: branches stacked, norms and the normalisation of pixels folded in.

Folding is computed in float64; what must cancel against a product uses the rounded weights. If the branches share
weights, they are stored once, [1, ...].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass

import torch
from torch import Tensor, nn

from ckd_fast.kernels.head import TOWERS, WIDEST_MAP, fold_batch_norm
from ckd_fast.kernels.linear import Float8Layer, FoldedLayer, Layer, PlainLayer, float8_layer, fold_norm
from ckd_fast.reference.head import Tower
from ckd_fast.reference.model import MODALITIES, Student
from ckd_fast.reference.preprocess import PIXEL_MEAN, PIXEL_STD
from ckd_fast.reference.vit import LAYER_NORM_EPS, Block, Branch
from ckd_fast.weights import Calibration

PIXEL_CENTRE = 128  # the crop kernel writes (pixel - 128) / 128, exact in every precision


@dataclass(frozen=True)
class PackedBlock:
    """One transformer block of all branches. Its layers may be in float8."""

    qkv: Layer
    proj: Layer
    fc1: Layer
    fc2: Layer


@dataclass(frozen=True)
class PackedStudent:
    """All weights of a student, contiguous, on one device."""

    patch: PlainLayer  # the patch embedding as a layer on centred pixels
    # [S, T, C] and [S, L, C] float32
    template_positions: Tensor
    search_positions: Tensor
    blocks: tuple[PackedBlock, ...]  # in order
    # final norm and first convolutions as one layer [2, 9 * 3 * F, C], taps outermost, towers side by side
    taps: FoldedLayer
    taps_bias: Tensor  # [3 * F] float32
    # the second to fourth convolution, weight [3, F, 9, C] and bias [3, F] float32
    convolutions: tuple[PlainLayer, PlainLayer, PlainLayer]
    # the 1x1 convolutions, weight [3, 2, F] and bias [3, 2] float32; the score's second output is zero
    maps: PlainLayer

    @property
    def bytes(self) -> int:
        """Device memory of the weights."""
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(self))


def tensors_of(packed: object) -> list[Tensor]:
    """Every tensor inside nested dataclasses and tuples."""
    if isinstance(packed, Tensor):
        return [packed]
    if isinstance(packed, tuple | list):
        return [tensor for part in packed for tensor in tensors_of(part)]
    if is_dataclass(packed) and not isinstance(packed, type):
        return [tensor for field in fields(packed) for tensor in tensors_of(getattr(packed, field.name))]
    return []


def pack(
    student: Student, device: torch.device, dtype: torch.dtype, calibration: Calibration | None = None
) -> PackedStudent:
    """Pack a student (float32, evaluation mode) for one device and precision.

    Args:
        student: its weights.
        device: where they go.
        dtype: precision of the layers that are not in float8.
        calibration: puts the layers of the blocks that it does not keep in higher precision into float8.
    """
    # Positions are added per branch, and the head's first convolution reads both modalities side by side. So both have
    # two parts, even if the branches share weights.
    both = student.branches
    branches = both[:1] if student.config.share_students else both

    def plain(weight: Tensor, bias: Tensor) -> PlainLayer:
        return PlainLayer(weight.to(device, dtype).contiguous(), bias.to(device, torch.float32).contiguous())

    def folded(layer: FoldedLayer) -> FoldedLayer:
        return FoldedLayer(
            layer.weight.to(device), layer.bias.to(device), layer.column_sum.to(device), layer.eps
        )  # fmt: skip

    def rounded(layer: Float8Layer) -> Float8Layer:
        return Float8Layer(
            layer.weight.to(device), layer.bias.to(device), layer.scale.to(device), layer.input_scale.to(device),
            layer.eps,
        )  # fmt: skip

    def stacked(pick: Callable[[Branch], Tensor], across: tuple[Branch, ...] = branches) -> Tensor:
        return torch.stack([pick(branch).detach().double() for branch in across])

    def block(index: int) -> PackedBlock:
        def of_block(pick: Callable[[Block], Tensor]) -> Tensor:
            return stacked(lambda branch: pick(branch.blocks[index]))  # type: ignore[arg-type]

        def normed(name: str, linear: Callable[[Block], nn.Linear], norm: Callable[[Block], nn.LayerNorm]) -> Layer:
            weight, bias = of_block(lambda b: linear(b).weight), of_block(lambda b: linear(b).bias)
            gamma, beta = of_block(lambda b: norm(b).weight), of_block(lambda b: norm(b).bias)
            largest = _largest_inputs(calibration, f"blocks.{index}.{name}", len(branches))
            if largest is None:
                return folded(fold_norm(weight, bias, gamma, beta, LAYER_NORM_EPS, dtype))
            shifted = bias + (weight @ beta[:, :, None])[..., 0]
            return rounded(float8_layer(weight * gamma[:, None, :], shifted, largest.to(weight.device), LAYER_NORM_EPS))

        def alone(name: str, linear: Callable[[Block], nn.Linear]) -> Layer:
            weight, bias = of_block(lambda b: linear(b).weight), of_block(lambda b: linear(b).bias)
            largest = _largest_inputs(calibration, f"blocks.{index}.{name}", len(branches))
            if largest is None:
                return plain(weight, bias)
            return rounded(float8_layer(weight, bias, largest.to(weight.device)))

        return PackedBlock(
            qkv=normed("qkv", lambda b: b.qkv, lambda b: b.norm1),
            proj=alone("proj", lambda b: b.proj),
            fc1=normed("fc1", lambda b: b.fc1, lambda b: b.norm2),
            fc2=alone("fc2", lambda b: b.fc2),
        )

    towers: tuple[Tower, ...] = (student.head.score, student.head.offset, student.head.size)
    first, first_bias = _merged([_folded_stage(tower, 0) for tower in towers])  # [3 * F, 2 * C, 3, 3]
    per_branch = torch.stack(first.chunk(2, dim=1))  # [2, 3 * F, C, 3, 3]
    tap_weight = per_branch.flatten(-2).permute(0, 3, 1, 2).flatten(1, 2)  # [2, 9 * 3 * F, C]
    gamma, beta = stacked(lambda b: b.norm.weight, both), stacked(lambda b: b.norm.bias, both)
    no_bias = tap_weight.new_zeros(tap_weight.shape[:2])
    convolutions = []
    for stage in (1, 2, 3):
        weights, biases = zip(*(_folded_stage(tower, stage) for tower in towers), strict=True)
        weight = torch.stack(weights).flatten(-2).transpose(-1, -2)  # [3, F, 9, C]
        convolutions.append(plain(weight, torch.stack(biases)))
    map_weight = torch.zeros(TOWERS, WIDEST_MAP, student.config.head_channels // 8)
    map_bias = torch.zeros(TOWERS, WIDEST_MAP)
    for index, tower in enumerate(towers):
        last: nn.Conv2d = tower[-1]  # type: ignore[assignment]
        outputs = last.out_channels
        map_weight[index, :outputs] = last.weight.detach()[:, :, 0, 0]
        map_bias[index, :outputs] = _bias(last)
    return PackedStudent(
        patch=plain(*_patch_embedding(stacked, dtype)),
        template_positions=stacked(lambda b: b.pos_embed_template[0], both).to(device, torch.float32).contiguous(),
        search_positions=stacked(lambda b: b.pos_embed_search[0], both).to(device, torch.float32).contiguous(),
        blocks=tuple(block(index) for index in range(student.config.depth)),
        taps=folded(fold_norm(tap_weight, no_bias, gamma, beta, LAYER_NORM_EPS, dtype)),
        taps_bias=first_bias.to(device, torch.float32).contiguous(),
        convolutions=(convolutions[0], convolutions[1], convolutions[2]),
        maps=PlainLayer(map_weight.to(device), map_bias.to(device)),
    )


def _largest_inputs(calibration: Calibration | None, layer: str, branches: int) -> Tensor | None:
    """The largest absolute value of a layer's input, per branch [S]; None if the layer is not to be in float8."""
    if calibration is None:
        return None
    names = [f"{branch}.{layer}" for branch in MODALITIES[:branches]]
    if any(name in calibration.in_float for name in names):  # both branches are one launch
        return None
    return torch.stack([calibration.inputs[name].abs().max() for name in names])


def unfolded_patch(student: Student, device: torch.device, dtype: torch.dtype) -> PlainLayer:
    """The patch embedding without the normalisation, for crops that are normalised."""
    both = student.branches
    weight = torch.stack([branch.patch_embed.weight.detach().flatten(1) for branch in both])
    bias = torch.stack([_bias(branch.patch_embed) for branch in both])
    return PlainLayer(weight.to(device, dtype).contiguous(), bias.to(device, torch.float32).contiguous())


def _bias(convolution: nn.Conv2d) -> Tensor:
    if convolution.bias is None:
        raise ValueError("a convolution of the head has no bias")
    return convolution.bias.detach().double()


def _folded_stage(tower: Tower, stage: int) -> tuple[Tensor, Tensor]:
    convolution, norm = tower[stage][0], tower[stage][1]  # type: ignore[index]
    return fold_batch_norm(
        convolution.weight.detach(), _bias(convolution), norm.weight.detach(), norm.bias.detach(),
        norm.running_mean, norm.running_var, norm.eps,
    )  # fmt: skip


def _merged(stages: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([weight for weight, _ in stages]), torch.cat([bias for _, bias in stages])


def _patch_embedding(stacked: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Fold (p / 255 - mean) / std into the convolution, for pixels p = 128 q + 128."""
    weight = stacked(lambda b: b.patch_embed.weight)  # [S, C, 3, P, P]
    bias = stacked(lambda b: _bias(b.patch_embed))
    mean, std = torch.tensor(PIXEL_MEAN).double()[:, None, None], torch.tensor(PIXEL_STD).double()[:, None, None]
    rounded = (weight * (PIXEL_CENTRE / (255 * std))).to(dtype).double()
    shift = (PIXEL_CENTRE - 255 * mean) / PIXEL_CENTRE
    return rounded.flatten(2), bias + (rounded * shift).flatten(2).sum(-1)
