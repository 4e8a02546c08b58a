"""Int8 on the openvino engine: its products are right on this processor, and it follows float32."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from both import TWO_BLOCKS
from calibrations import calibrate_by_chance
from support import enliven, shared_data

from ckd_fast import EngineError, InputError, ModelConfig, Tracker, load_model
from ckd_fast.cache import Cache
from ckd_fast.engines import Engine, Search, build_engine
from ckd_fast.images import read_rgb, read_tir
from ckd_fast.reference.config import Elimination
from ckd_fast.weights import Agreement, Calibration, LoadedModel, layer_inputs

openvino = pytest.importorskip("openvino", reason="openvino is not installed: pip install 'ckd_fast[cpu]'")

from openvino import opset15 as op  # noqa: E402 - after the skip

from ckd_fast.engines.openvino import engine as engine_module  # noqa: E402
from ckd_fast.engines.openvino.int8 import Int8, Support, grid, support  # noqa: E402
from ckd_fast.engines.openvino.runtime import openvino_core  # noqa: E402
from ckd_fast.quantization import (  # noqa: E402
    Clip,
    Wanted,
    compare,
    generated_clip,
    quantize,
    search_again,
    summary,
    track,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

ANY = Wanted(0.0, 0.0)
PRODUCT = "FullyConnected"  # OpenVINO's name for what becomes of a product with constants


def calibration(low: NDArray, high: NDArray, layer: str) -> Calibration:
    inputs = {layer: torch.from_numpy(np.stack([low, high])).float()}
    return Calibration(inputs, (), 1, "a test", Agreement(1, 1.0, 1.0))


def product(x: NDArray, weight: NDArray, layer: str, *, narrow: bool) -> NDArray:
    """A layer in int8, calibrated on the very input that it multiplies."""
    int8 = Int8(calibration(x.min(axis=0), x.max(axis=0), layer), narrow)
    given = op.parameter(list(x.shape), np.float32)
    factors = int8.rounded(layer, given, weight)
    node = op.matmul(*factors, transpose_a=False, transpose_b=True)
    properties = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino_core().compile_model(openvino.Model([op.result(node)], [given], "product"), "CPU", properties)
    types = [node.get_rt_info()["primitiveType"].astype(str) for node in compiled.get_runtime_model().get_ops()]
    assert any(kind.lower().endswith("i8") for kind in types), types  # not by chance in float32
    result: NDArray = compiled([x.astype(np.float32)])[0]
    return result


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (-0.17, 16.0), (0, 3), (-5, 0), (-1, 0.9), (0, 0), (-1e-9, 1e-9)])
def test_a_grid_holds_the_range_and_zero(low: float, high: float) -> None:
    bottom, top = grid(low, high)
    assert bottom <= low + 1e-12
    assert top >= high - 1e-12
    zero = -bottom / (top - bottom) * 255
    assert zero == pytest.approx(round(zero), abs=1e-9)
    assert top - bottom <= max(2.01 * (high - low), 1e-4)  # no more than two bits wasted


@pytest.mark.parametrize("shape", [(320, 768, 2304), (40, 64, 48)], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_are_right(shape: tuple[int, int, int], sign: int) -> None:
    """All inputs and weights at their ends: products that 16 bits would not hold."""
    rows, inputs, outputs = shape
    x, weight = np.ones((rows, inputs)), np.full((outputs, inputs), float(sign))
    x[0] = 0.0  # else there is no range
    found = product(x, weight, "rgb.blocks.0.fc2", narrow=support(openvino_core()).saturating)
    assert np.allclose(found, x @ weight.T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layer", ["rgb.blocks.0.fc2", "rgb.blocks.0.qkv"])
def test_a_product_is_as_close_as_its_grids(layer: str) -> None:
    """Each input and each weight is at most half a step off."""
    draw = np.random.default_rng(0)
    x, weight = draw.normal(size=(50, 96)), draw.normal(size=(64, 96))
    narrow = support(openvino_core()).saturating
    found = product(x, weight, layer, narrow=narrow)
    steps_x, steps_w = 255, 128 if narrow else 254
    if layer.endswith("qkv"):  # as smoothed
        smooth = np.sqrt(np.abs(x).max(axis=0) / np.abs(weight).max(axis=0))
        x, weight = x / smooth, weight * smooth
    half_x = 1.01 * 2 * np.abs(x).max() / steps_x / 2
    half_w = 1.01 * 2 * np.abs(weight).max(axis=1) / steps_w / 2  # [outputs]
    bound = half_x * np.abs(weight).sum(axis=1) + half_w * (np.abs(x).sum(axis=1, keepdims=True) + half_x * x.shape[1])
    error = np.abs(found - x @ weight.T)
    assert (error <= bound).all()
    assert error.max() > 1e-4  # it was rounded


def test_smoothing_tames_a_channel_that_stands_out() -> None:
    draw = np.random.default_rng(1)
    x, weight = draw.normal(size=(50, 96)), draw.normal(size=(64, 96))
    x[:, 5] *= 60
    narrow = support(openvino_core()).saturating
    rough, smooth = (
        np.abs(product(x, weight, f"rgb.blocks.0.{layer}", narrow=narrow) - x @ weight.T).mean()
        for layer in ("fc2", "fc1")
    )
    assert smooth < rough / 2


def packaged(elimination: Elimination = "none") -> LoadedModel:
    model = load_model(None)
    return dataclasses.replace(model, config=dataclasses.replace(model.config, elimination=elimination))


def generated(seed: int, frames: int) -> Clip:
    return generated_clip(seed, frames, 320, 240)


def follows(engine: Engine, plain: Engine, clip: Clip) -> Agreement:
    seen = track(plain, clip)
    return summary([compare(a, b) for a, b in zip(seen, search_again(engine, clip, seen), strict=True)])


@pytest.fixture(scope="module", params=["none", "mce"])
def calibrated(request: pytest.FixtureRequest) -> LoadedModel:
    return quantize(packaged(request.param), [generated(30_000, 12), generated(30_001, 12)], "generated", ANY, print)


def test_it_follows_float32(calibrated: LoadedModel) -> None:
    assert calibrated.calibration is not None
    assert calibrated.calibration.in_float == ()
    int8, plain = (build_engine("openvino", calibrated, "cpu", dtype) for dtype in ("int8", "float32"))
    found = follows(int8, plain, generated(31_000, 12))
    assert found.kept >= 0.93
    assert found.iou >= 0.95
    missing = generated(31_001, 9)
    pairs = (missing.pairs[0], *(dataclasses.replace(pair, tir=None) for pair in missing.pairs[1:]))
    assert follows(int8, plain, dataclasses.replace(missing, pairs=pairs)).kept >= 0.93


def test_it_follows_float32_on_a_real_clip(calibrated: LoadedModel) -> None:
    folder = shared_data("sequences", "m3svd_0111_1716")
    names = [sorted((folder / kind).iterdir())[:20] for kind in ("visible", "infrared")]
    box = [float(value) for value in (folder / "groundtruth.txt").read_text().split()[0].split(",")]
    clip = Clip.of("m3svd", [(read_rgb(rgb), read_tir(tir)) for rgb, tir in zip(*names, strict=True)], box)  # type: ignore[misc]
    int8, plain = (build_engine("openvino", calibrated, "cpu", dtype) for dtype in ("int8", "float32"))
    found = follows(int8, plain, clip)
    assert found.kept >= 0.93
    assert found.iou >= 0.95


@pytest.mark.parametrize("change", [{}, {"share_students": True}, {"elimination": "ce"}], ids=str)
def test_the_layers_that_it_names_run_in_int8(change: dict) -> None:
    config: ModelConfig = dataclasses.replace(TWO_BLOCKS, **change)
    model = load_model("random", config, seed=3)
    enliven(model.student(), 3)
    all_layers = list(layer_inputs(config))
    for in_float in ((), tuple(all_layers[::3])):
        engine = build_engine("openvino", calibrate_by_chance(model, in_float), "cpu", "int8")
        assert isinstance(engine, engine_module.OpenVinoEngine)
        assert f"{len(all_layers) - len(in_float)} of {len(all_layers)} layers" in str(engine)
        kind = engine_module.FrameKind(engine.config, 1)
        about = [node.get_rt_info() for node in engine._requests(kind).compiled.get_runtime_model().get_ops()]
        products = [info["primitiveType"].astype(str) for info in about if info["layerType"].astype(str) == PRODUCT]
        # Shared branches have one layer in each block, but the head has other weights for each.
        of_head = config.share_students and "rgb.head" not in in_float
        expected = len(all_layers) - len(in_float) + (1 if of_head else 0)
        assert sum(kind.lower().endswith("i8") for kind in products) == expected


def test_the_cache_tells_calibrations_apart(tmp_path: Path) -> None:
    bare = load_model("random", TWO_BLOCKS, seed=3)
    enliven(bare.student(), 3)
    crops = torch.randn(2, 1, 3, 32, 32), torch.randn(2, 1, 3, 80, 80)
    variants = [calibrate_by_chance(bare), calibrate_by_chance(bare, seed=1), calibrate_by_chance(bare, ("rgb.head",))]

    def scores(cache: Cache) -> list[torch.Tensor]:
        engines = [engine_module.OpenVinoEngine(model, torch.int8, cache=cache) for model in variants]
        return [engine.run_network(*crops).score for engine in engines]

    fresh, stored, loaded = scores(Cache(None)), scores(Cache(tmp_path)), scores(Cache(tmp_path))
    assert len(list(tmp_path.iterdir())) == 1 + 3 * 2  # one template; each a frame in use, and the network alone
    for first, second, third in zip(fresh, stored, loaded, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)
    assert not torch.equal(fresh[0], fresh[1])
    assert not torch.equal(fresh[0], fresh[2])


def test_several_targets() -> None:
    model = quantize(packaged(), [generated(30_000, 8)], "generated", ANY, print)
    engine = build_engine("openvino", model, "cpu", "int8")
    clip = generated(31_000, 3)
    target = [engine.make_target(clip.pairs[0], clip.box) for _ in range(3)]
    x, y, w, h = clip.box
    boxes = [clip.box, (x + 4, y, w, h), (x, y - 3, w * 1.1, h)]
    together = engine.start([Search(t, box, 3.0) for t, box in zip(target, boxes, strict=True)], clip.pairs[1]).result()
    for each, box, found in zip(target, boxes, together, strict=True):
        (alone,) = engine.start([Search(each, box, 3.0)], clip.pairs[1]).result()
        # A sum in another order may round to the next of 255 steps.
        assert found.box == pytest.approx(alone.box, abs=max(w, h) * 0.02)


def test_what_is_the_default(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Int8 where the processor is fast at it, for weights that are calibrated; else what is native, and it says so."""
    model = calibrate_by_chance(load_model("random", TWO_BLOCKS, seed=3))
    monkeypatch.setattr(engine_module, "support", lambda _core: Support(native=True, saturating=False))
    assert str(Tracker(model, engine="openvino", device="cpu").engine).startswith(
        "openvino on cpu, int8 (18 of 18 layers"
    )
    assert "int8" not in str(build_engine("openvino", dataclasses.replace(model, calibration=None), "cpu"))
    assert not caplog.records
    monkeypatch.setattr(engine_module, "support", lambda _core: Support(native=False, saturating=False))
    assert "not int8, because OpenVINO computes int8 in floats" in str(build_engine("auto", model, "cpu"))
    monkeypatch.setattr(engine_module, "support", lambda _core: Support(native=True, saturating=True))
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="ckd_fast"):
        slow = build_engine("auto", model, "cpu")
    assert slow.dtype != torch.int8
    assert "not int8, because this processor has no VNNI" in str(slow)
    assert len(caplog.records) == 1
    assert "weights in seven bits" in str(build_engine("auto", model, "cpu", "int8"))


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = load_model("random", TWO_BLOCKS, seed=3)
    for name in ("openvino", "auto"):
        with pytest.raises(InputError, match="no calibration; ckd-fast quantize"):
            build_engine(name, bare, "cpu", "int8")
    for name in ("reference", "compiled", "triton"):
        with pytest.raises(InputError, match="only engine 'openvino' on a CPU"):
            build_engine(name, calibrate_by_chance(bare), "cpu", "int8")
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    monkeypatch.delitem(__import__("sys").modules, "ckd_fast.engines.openvino.engine", raising=False)
    with pytest.raises(EngineError, match=r"pip install 'ckd_fast\[cpu\]'"):
        build_engine("auto", calibrate_by_chance(bare), "cpu", "int8")
