"""`ckd-fast quantize`, as typed in a shell."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Command, sample

from ckd_fast import Tracker, load_model
from ckd_fast.engines import build_engine
from ckd_fast.quantization import calibrate, costs_alone, generated_clip, group_of, observe, track
from ckd_fast.weights import Agreement, Calibration, layer_inputs

pytest.importorskip("openvino", reason="openvino is not installed: pip install 'ckd_fast[cpu]'")

ANYWAY = ("--frames", "5", "--least-kept", "0", "--least-iou", "0")


def clip(folder: Path, frames: int = 6) -> tuple[object, ...]:
    sample(folder, frames)
    return ("--clip", folder / "visible", folder / "infrared")


def test_one_file_that_a_tracker_loads(tmp_path: Path, command: Command, weights: str) -> None:
    out = tmp_path / "int8.safetensors"
    first, second = clip(tmp_path / "a"), clip(tmp_path / "b", frames=9)
    told = command("quantize", "--weights", weights, *first, *second, "--out", out, *ANYWAY, "--json")
    assert told.code == 0
    model = load_model(out)
    layers = list(layer_inputs(model.config))
    # Of each clip's five frames four are tracked, the last of which is held back.
    assert told.json["frames"] == 6
    assert told.json["agreement"]["frames"] == 2
    assert told.json["in_int8"] == len(layers)
    assert told.json["in_float"] == []
    assert model.calibration is not None
    assert model.calibration.agreement.iou == told.json["agreement"]["iou"]
    assert model.calibration.source == "2 clips of the user's"
    assert "int8" in str(Tracker(out, engine="openvino", device="cpu", dtype="int8").engine)
    shown = command("weights", "inspect", out)
    assert f"kept tokens {model.calibration.agreement.kept:.3f}" in shown.out
    assert "in higher precision: no layer" in shown.out
    assert command("quantize", "--out", out).refuses("int8.safetensors exists")


def test_videos_and_targets(tmp_path: Path, command: Command, weights: str) -> None:
    """A clip's box says where it is searched, so other boxes see other values."""
    sample(tmp_path / "v", 6, "--video")
    found = []
    for number, box in enumerate(("10,10,20,20", "90,60,40,30")):
        out = tmp_path / f"{number}.safetensors"
        videos = [tmp_path / "v" / name for name in ("visible.mp4", "infrared.mp4")]
        told = command("quantize", "--weights", weights, "--clip", *videos, "--init", box, "--out", out, *ANYWAY)
        assert told.code == 0
        assert "held-back frames" in told.out
        calibration = load_model(out).calibration
        assert calibration is not None
        found.append(calibration.inputs["rgb.blocks.0.qkv"])
    assert not found[0].equal(found[1])


def test_it_refuses_to_write_what_agrees_too_little(
    tmp_path: Path, command: Command, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "costs_alone", lambda *_rest: {"head": 0.5, "blocks.1.fc1": 0.1})
    out = tmp_path / "int8.safetensors"
    wanted = ("--frames", "9", "--least-kept", "1", "--least-iou", "1")
    arguments = ("quantize", "--weights", weights, *clip(tmp_path / "a", 9), "--out", out, *wanted)
    told = command(*arguments)
    assert told.refuses("not written: int8 follows float32 less closely than wanted: kept tokens")
    assert told.err.count("\n") == 1
    assert not out.exists()
    told = command(*arguments, "--write-anyway", "--json")
    assert told.code == 0
    assert told.json["in_float"] == ["rgb.head", "tir.head"]  # the worst, and still it does not agree
    loaded = load_model(out).calibration
    assert loaded is not None
    assert loaded.in_float == ("rgb.head", "tir.head")


def test_what_each_group_costs_alone(weights: str) -> None:
    footage = generated_clip(0, 5, 160, 120)
    model = load_model(weights)
    plain = build_engine("openvino", model, "cpu", "float32")
    tracked = [(footage, track(plain, footage))]
    calibration = Calibration(observe(model, tracked), (), 4, "generated", Agreement(4, 1.0, 1.0))
    told: list[str] = []
    costs = costs_alone(model, calibration, tracked, told.append)
    assert set(costs) == {group_of(name) for name in layer_inputs(model.config)}
    assert list(costs.values()) == sorted(costs.values(), reverse=True)
    # One layer in int8 changes the maps, by little.
    assert all(0 < cost < 0.5 for cost in costs.values())
    assert len(told) == len(costs)


def test_the_worst_layers_stay_in_float(
    tmp_path: Path, command: Command, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups are ordered by what they cost alone; the first, the first two, and so on are tried."""
    monkeypatch.setattr(
        calibrate,
        "costs_alone",
        lambda *_rest: {"blocks.1.fc2": 0.5, "head": 0.4, "blocks.0.qkv": 0.3, "blocks.0.fc1": 0},
    )
    told = command(
        "quantize", "--weights", weights, *clip(tmp_path / "a"), "--out", tmp_path / "x.safetensors",
        "--frames", "5", "--least-kept", "1", "--least-iou", "1",
    )  # fmt: skip
    tried = [line.partition(" in higher")[0] for line in told.out.splitlines() if "in higher precision" in line]
    assert tried == ["blocks.1.fc2", "blocks.1.fc2, head"]


@pytest.mark.parametrize(("more", "message"), [
    (("--least-kept", "1.1"), "--least-kept 1.1: expected a number in [0, 1]"),
    (("--least-iou", "nan"), "--least-iou nan: expected a number in [0, 1]"),
    (("--init", "1,2,3,4"), "1 times --init and 0 times --clip"),
    (("--weights", "absent.pth"), "no such file"),
    (("--clip", "absent", "absent"), "no such file or folder"),
    (("--frames", "4"), "4 pairs of frames; calibration needs clips of at least 5"),
])  # fmt: skip
def test_what_it_refuses(tmp_path: Path, command: Command, more: tuple[str, ...], message: str) -> None:
    out = tmp_path / "x.safetensors"
    assert command("quantize", "--out", out, *more).refuses(message)
    assert not out.exists()


def test_names_and_frames_that_it_refuses(tmp_path: Path, command: Command, weights: str) -> None:
    assert command("quantize", "--out", tmp_path / "x.pth").refuses("ends in .safetensors")
    arguments = clip(tmp_path / "a")
    (tmp_path / "a" / "visible" / "000003.jpg").write_bytes(b"no image")
    told = command("quantize", "--weights", weights, *arguments, "--out", tmp_path / "x.safetensors")
    assert told.refuses("000003.jpg cannot be read")


def test_without_openvino(tmp_path: Path, command: Command, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    monkeypatch.delitem(__import__("sys").modules, "ckd_fast.engines.openvino.engine", raising=False)
    told = command(
        "quantize", "--weights", weights, *clip(tmp_path / "a"), "--out", tmp_path / "x.safetensors", *ANYWAY
    )
    assert told.refuses("pip install 'ckd_fast[quantize]'")


def test_it_looks_at_the_place_first(tmp_path: Path, command: Command, weights: str) -> None:
    """Before anything is loaded: the clip is absent."""
    (tmp_path / "folder.safetensors").mkdir()
    for out, message in (("absent/x.safetensors", "absent does not exist"), ("folder.safetensors", "a directory")):
        told = command("quantize", "--weights", weights, "--clip", "no", "no", "--out", tmp_path / out, "--force")
        assert told.refuses(message)


def test_it_leaves_the_users_cache_alone(
    tmp_path: Path, command: Command, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKD_FAST_CACHE", str(tmp_path / "cache"))
    out = ("--out", tmp_path / "x.safetensors")
    assert command("quantize", "--weights", weights, *clip(tmp_path / "a"), *out, *ANYWAY).code == 0
    assert not (tmp_path / "cache").exists()
