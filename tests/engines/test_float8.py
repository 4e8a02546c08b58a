"""Float8 on the triton engine: it computes what a plain network with rounded layers does, and that follows float32."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from both import BOX, TWO_BLOCKS, frames
from interpreter import kernel_device
from support import assert_as_exact, enliven, large_tiles
from torch import Tensor, nn
from torch.nn import functional

from ckd_fast import InputError, load_model
from ckd_fast.datasets import ClipConfig, SyntheticClip
from ckd_fast.engines import Engine, Search, build_engine
from ckd_fast.engines.host import ReferenceEngine
from ckd_fast.engines.triton import TritonEngine
from ckd_fast.engines.triton.weights import pack
from ckd_fast.kernels.launch import LaunchSettings
from ckd_fast.kernels.linear import Float8Layer, FoldedLayer
from ckd_fast.quantization import Clip, compare, generated_clip, search_again, summary, track
from ckd_fast.quantization.calibrate import observe
from ckd_fast.reference import twins
from ckd_fast.reference.model import MODALITIES, Student
from ckd_fast.reference.vit import Block
from ckd_fast.weights import Agreement, Calibration, LoadedModel

DEVICE = kernel_device()
CPU = torch.device("cpu")


class RoundedLinear(nn.Module):
    """A linear layer whose factors are rounded to float8."""

    def __init__(self, weight: Tensor, bias: Tensor, largest: Tensor) -> None:
        super().__init__()
        scale = weight.abs().amax(-1, keepdim=True) / twins.FLOAT8_LARGEST
        self.weight, self.bias = nn.Parameter(twins.float8(weight, scale) * scale), nn.Parameter(bias)
        self.scale = nn.Parameter(largest / twins.FLOAT8_LARGEST)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(twins.float8(x, self.scale) * self.scale, self.weight, self.bias)


def round_block(block: Block, calibration: Calibration, name: str) -> None:
    for layer, norm in (("qkv", "norm1"), ("proj", None), ("fc1", "norm2"), ("fc2", None)):
        linear: nn.Linear = getattr(block, layer)
        weight, bias = linear.weight.detach(), linear.bias.detach()
        if norm is not None:
            before: nn.LayerNorm = getattr(block, norm)
            weight, bias = weight * before.weight.detach(), bias + weight @ before.bias.detach()
            setattr(block, norm, nn.LayerNorm(len(before.weight), before.eps, elementwise_affine=False))
        largest = calibration.inputs[f"{name}.{layer}"].abs().max()
        setattr(block, layer, RoundedLinear(weight, bias, largest))


def plain_float8(model: LoadedModel, dtype: torch.dtype = torch.float32) -> ReferenceEngine:
    """The reference with the layers of its blocks rounded, the rest in `dtype`."""
    assert model.calibration is not None
    student: Student = copy.deepcopy(model.student())
    for branch_name, branch in zip(MODALITIES, student.branches, strict=True):
        for index, block in enumerate(branch.blocks):
            round_block(block, model.calibration, f"{branch_name}.blocks.{index}")
    engine = ReferenceEngine(model, CPU, dtype)
    engine._student = student.to(dtype).eval().requires_grad_(requires_grad=False)
    return engine


def calibrated(model: LoadedModel, *clips: Clip, in_float: tuple[str, ...] = ()) -> LoadedModel:
    plain = ReferenceEngine(model, CPU, torch.float32)
    inputs = observe(model, [(clip, track(plain, clip)) for clip in clips])
    return dataclasses.replace(
        model, calibration=Calibration(inputs, in_float, 1, "generated", Agreement(1, 1.0, 1.0))
    )  # fmt: skip


@pytest.fixture(scope="module")
def small() -> LoadedModel:
    model = load_model("random", TWO_BLOCKS, seed=3)
    enliven(model.student(), 3)
    return calibrated(model, generated_clip(30_000, 6, 128, 96))


def steps(engine: Engine) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    search = Search(engine.make_target(frames(), BOX), BOX, 4.0)
    engine.start([search], frames(1), lambda name, value: seen.update({name: value.detach().cpu().clone()})).result()
    return seen


def test_it_computes_what_a_network_with_rounded_layers_does(small: LoadedModel) -> None:
    engine = TritonEngine(small, DEVICE, torch.float8_e4m3fn, settings=LaunchSettings(large_tiles))
    ours, twin, exact = (
        steps(each) for each in (engine, plain_float8(small, torch.bfloat16), plain_float8(small, torch.float64))
    )
    assert str(engine).startswith("triton on cpu, float8_e4m3fn")
    for name in ("block0.mlp", "head.score", "head.size", "head.offset"):
        assert_as_exact(ours[name], twin[name], exact[name])


def test_the_layers_that_it_names_are_in_float8(small: LoadedModel) -> None:
    """A layer that one branch keeps in higher precision is so in both, because both are one launch."""
    calibration = small.calibration
    assert calibration is not None
    some = dataclasses.replace(calibration, in_float=("tir.blocks.1.fc1", "rgb.head"))
    packed = pack(small.student(), CPU, torch.bfloat16, some)
    first, second = packed.blocks
    for layer in (first.qkv, first.proj, first.fc1, first.fc2, second.qkv, second.proj, second.fc2):
        assert isinstance(layer, Float8Layer)
        assert layer.weight.dtype == torch.float8_e4m3fn
        assert layer.weight.float().abs().amax(-1).eq(448).all()  # each output has its own scale
    assert isinstance(second.fc1, FoldedLayer)
    largest = calibration.inputs["tir.blocks.0.fc2"].abs().max()
    assert isinstance(first.fc2, Float8Layer)
    assert first.fc2.input_scale[1] == pytest.approx(float(largest) / 448)


def test_it_needs_a_calibration_and_a_gpu(small: LoadedModel) -> None:
    with pytest.raises(InputError, match=r"dtype='float8': these weights carry no calibration; ckd-fast quantize"):
        TritonEngine(
            dataclasses.replace(small, calibration=None), DEVICE, torch.float8_e4m3fn,
            settings=LaunchSettings(large_tiles),
        )  # fmt: skip
    for name in ("auto", "reference", "openvino"):
        with pytest.raises(InputError, match=f"dtype='float8': only engine 'triton' on a GPU runs it, not '{name}'"):
            build_engine(name, small, "cpu", "float8")


@pytest.mark.parametrize("elimination", ["none", "mce"])
def test_float8_follows_float32(elimination: str) -> None:
    """The packaged model with rounded layers, within what int8 must keep to, on a target that it can follow."""
    model = load_model(None)
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, elimination=elimination))
    model = calibrated(model, *(generated_clip(seed, 9, 320, 240) for seed in (30_000, 30_001)))
    plain, eight = ReferenceEngine(model, CPU, torch.float32), plain_float8(model)
    # Alone in a quiet scene. Of a target that float32 has lost, boxes differ in bfloat16 already.
    quiet = ClipConfig(
        320, 240, 12, 31_001, distractors=0, clutter=0, dark=False, crossover=False, occlusion=False, camera_motion=0.0
    )
    drawn = list(SyntheticClip(quiet))
    clip = Clip.of("quiet", [(frame.rgb, frame.tir) for frame in drawn], drawn[0].box)
    seen = track(plain, clip)
    found = summary([compare(a, b) for a, b in zip(seen, search_again(eight, clip, seen), strict=True)])
    assert found.kept >= 0.93
    assert found.iou >= 0.95
