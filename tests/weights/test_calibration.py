"""A calibration beside the weights: what was saved is loaded, and what cannot be true is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from calibrations import calibrate_by_chance
from checkpoints import SMALL
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ckd_fast import CorruptWeightsError, LoadedModel, WeightsMismatchError, load_model, save_model
from ckd_fast.engines import build_engine
from ckd_fast.weights import Calibration, convert_weights, inspect_weights, layer_inputs

LAYER = "calibration.tir.blocks.1.fc2"


def calibrated() -> LoadedModel:
    return calibrate_by_chance(load_model("random", SMALL, seed=3), in_float=("rgb.head", "tir.blocks.0.qkv"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "int8.safetensors"
    save_model(calibrated(), path)
    return path


def changed(
    file: Path, tensors: Callable[[dict[str, Tensor]], object] | None = None, line: dict[str, Any] | str | None = None
) -> Path:
    """The same file with other tensors, or with another line of metadata."""
    held = load_file(file)
    with safe_open(file, "pt") as handle:
        metadata = handle.metadata()
    if tensors is not None:
        tensors(held)
    if isinstance(line, dict):
        metadata["int8"] = json.dumps(json.loads(metadata["int8"]) | line)
    elif line is not None:
        metadata["int8"] = line
    save_file(held, file, metadata)
    return file


def test_what_was_saved_is_loaded(file: Path) -> None:
    before, after = calibrated(), load_model(file)
    old, new = before.calibration, after.calibration
    assert old is not None
    assert new is not None
    assert list(new.inputs) == list(layer_inputs(SMALL))
    assert all(torch.equal(new.inputs[name], old.inputs[name]) for name in old.inputs)
    assert (new.in_float, new.frames, new.source, new.agreement) == (
        old.in_float, old.frames, old.source, old.agreement,
    )  # fmt: skip
    assert set(new.in_int8) == set(layer_inputs(SMALL)) - {"rgb.head", "tir.blocks.0.qkv"}
    assert after.weights.keys() == before.weights.keys()


def test_it_survives_conversion_exactly(file: Path, tmp_path: Path) -> None:
    """Weights are rounded to half precision, ranges are not."""
    convert_weights(file, tmp_path / "half.safetensors", half="float16")
    kept, given = load_model(tmp_path / "half.safetensors").calibration, load_model(file).calibration
    assert kept is not None
    assert given is not None
    assert all(torch.equal(kept.inputs[name], given.inputs[name]) for name in given.inputs)
    assert inspect_weights(tmp_path / "half.safetensors").int8 == given.agreement


def test_other_engines_take_no_notice(file: Path) -> None:
    crops = torch.randn(2, 1, 3, 128, 128), torch.randn(2, 1, 3, 256, 256)
    plain = dataclasses.replace(load_model(file), calibration=None)
    ours, theirs = (build_engine("reference", model, "cpu").run_network(*crops) for model in (load_model(file), plain))
    assert torch.equal(ours.score, theirs.score)


def test_layers_have_weights_and_most_products() -> None:
    names = load_model("random", SMALL, seed=3).weights
    for layer, channels in layer_inputs(SMALL).items():
        if not layer.endswith(".head"):
            assert names[f"{layer}.weight"].shape[1] == channels
    shared = dataclasses.replace(SMALL, share_students=True)
    assert list(layer_inputs(shared)) == [name for name in layer_inputs(SMALL) if name.startswith("rgb.")]


@pytest.mark.parametrize(("change", "message"), [
    (lambda held: held.pop(LAYER), "lacks layers tir.blocks.1.fc2"),
    (lambda held: held.update({"calibration.rgb.blocks.2.fc2": torch.ones(1)}), "unknown layers rgb.blocks.2.fc2"),
    (lambda held: held.update({LAYER: torch.zeros(2, 64)}), r"is \(2, 64\), expected \(2, 128\)"),
    (lambda held: held.update({LAYER: torch.zeros(1)}), r"is \(1,\), expected"),
    (lambda held: held[LAYER][0].fill_(float("nan")), "values that are not finite"),
    (lambda held: held[LAYER][1].fill_(float("inf")), "values that are not finite"),
    (lambda held: held[LAYER][1].fill_(2e6), r"beyond 1e\+06"),
    (lambda held: held[LAYER][0].fill_(1e5), "a lowest value above the highest"),
    (lambda held: held.update({LAYER: torch.zeros(2, 128, dtype=torch.int32)}), "expected a floating-point tensor"),
    (lambda held: [held.pop(name) for name in list(held) if name.startswith("calibration.")], "lacks layers"),
])  # fmt: skip
def test_tensors_that_cannot_be(file: Path, change: Callable[[dict[str, Tensor]], object], message: str) -> None:
    with pytest.raises((CorruptWeightsError, WeightsMismatchError), match=message) as raised:
        load_model(changed(file, change))
    assert file.name in str(raised.value)


@pytest.mark.parametrize("line", [
    {"in_float": ["rgb.blocks.9.fc1"]}, {"in_float": "rgb.head"}, {"in_float": [1]}, {"in_float": [["rgb.head"]]},
    {"in_float": None}, {"frames": 0}, {"frames": True}, {"frames": 1.5}, {"frames": 2**40}, {"held_back": -1},
    {"kept": 1.01}, {"kept": float("nan")}, {"iou": "1"}, {"iou": None}, {"iou": True}, {"source": 3},
    {"source": "a\x1b[2J"}, {"source": "a" * 301}, "[]", "{", "[" * 100_000,
], ids=lambda line: str(line)[:40])  # fmt: skip
def test_lines_that_cannot_be(file: Path, line: dict[str, Any] | str) -> None:
    with pytest.raises(CorruptWeightsError) as raised:
        load_model(changed(file, line=line))
    message = str(raised.value)
    assert file.name in message
    assert "\x1b" not in message
    assert len(message) < 400


def test_tensors_without_a_line(file: Path) -> None:
    held = load_file(file)
    with safe_open(file, "pt") as handle:
        metadata = handle.metadata()
    del metadata["int8"]
    save_file(held, file, metadata)
    with pytest.raises(CorruptWeightsError, match="no line 'int8'"):
        load_model(file)


def test_another_model(file: Path) -> None:
    """Weights that are equal in both branches may be loaded as shared; their calibration has a branch too many."""
    held = load_file(file)
    for name in [name for name in held if name.startswith("tir.")]:
        held[name] = held["rgb." + name[4:]].clone()
    with safe_open(file, "pt") as handle:
        save_file(held, file, handle.metadata())
    with pytest.raises(WeightsMismatchError, match=r"unknown layers tir\.blocks\.0\.fc1.*calibrate again"):
        load_model(file, dataclasses.replace(SMALL, share_students=True))


def test_a_calibration_names_only_its_layers() -> None:
    calibration = calibrated().calibration
    assert isinstance(calibration, Calibration)
    with pytest.raises(ValueError, match="does not have: nothing"):
        dataclasses.replace(calibration, in_float=("nothing",))
