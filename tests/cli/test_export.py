"""`ckd-fast export`, as typed in a shell, and the other commands with its files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import SMALL
from commands import Command, sample
from exports import PLAIN, Case, Made, model

from ckd_fast import EngineError, InputError, LoadedModel, OutputError, load_model
from ckd_fast.engines import build_engine
from ckd_fast.engines.host import ReferenceEngine
from ckd_fast.exporting import export_model
from ckd_fast.reference.preprocess import normalise
from ckd_fast.weights import open_model

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package} is not installed: pip install 'ckd_fast[export]'")
verified = pytest.importorskip("ckd_fast.exporting.verify").verified


def test_export_and_track(tmp_path: Path, command: Command, weights: str) -> None:
    """In half precision: as close to float32 as PyTorch's own; then the file tracks, and is not overwritten."""
    path = tmp_path / "small.onnx"
    done = command("export", "--weights", weights, "--out", path, "--dtype", "float16", "--json")
    assert done.code == 0, done.err
    assert "translating the network" in done.err
    told = done.json
    assert Path(told["path"]) == path
    files = {path, tmp_path / "small.template.onnx"}
    assert set(tmp_path.iterdir()) == files
    assert told["bytes"] == sum(file.stat().st_size for file in files)
    assert 0 < told["error"] < 0.05

    loaded, cpu = load_model(weights), torch.device("cpu")
    generator = torch.Generator().manual_seed(0)
    crops = [torch.randint(256, (2, 1, side, side, 3), dtype=torch.uint8, generator=generator) for side in (128, 256)]
    template, search = map(normalise, crops)
    engines = (
        build_engine("onnx", open_model(path), "cpu"),
        ReferenceEngine(loaded, cpu, torch.float16),
        ReferenceEngine(loaded, cpu, torch.float32),
    )
    assert engines[0].dtype == torch.float16
    ours, half, exact = (
        each.run_network(template.to(each.dtype), search.to(each.dtype)).score.float() for each in engines
    )
    assert 0 < (ours - exact).abs().mean() <= 2 * (half - exact).abs().mean() + 1e-4

    clip = sample(tmp_path / "clip", 4)
    where = [clip / "visible", clip / "infrared", "--ground-truth", clip / "groundtruth.txt", "--weights", path]
    tracked = command("track", *where, "--out", tmp_path / "run", "--no-video", "--json", "--quiet", "--threads", "1")
    assert tracked.json["engine"] == "onnx on CPUExecutionProvider, float16"
    assert tracked.json["frames"] == 4
    assert command("track", *where, "--out", tmp_path / "2", "--device", "tensorrt").refuses("has the providers")
    assert command("track", *where, "--out", tmp_path / "2", "--engine", "openvino").refuses("runs on engine 'onnx'")
    ran = command(
        "run", "--dataset", "folder", "--root", clip, "--weights", path, "--out", tmp_path / "results", "--json"
    )
    assert ran.json["engines"] == ["onnx on CPUExecutionProvider, float16"]
    for verb in (["weights", "inspect", path], ["export", "--weights", path, "--out", tmp_path / "again.onnx"]):
        assert command(*verb).refuses("gives no weights back")

    before = path.read_bytes()
    assert command("export", "--weights", weights, "--out", path).refuses("small.template.onnx exist")
    path.unlink()
    assert command("export", "--weights", weights, "--out", path).refuses("small.template.onnx exists")
    path.write_bytes(before)


def test_what_export_refuses(tmp_path: Path, command: Command, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "x.onnx"
    for arguments, message in (
        (["--out", tmp_path / "x.pt"], "expected a name that ends in .onnx"),
        (["--out", tmp_path / "no" / "x.onnx"], "does not exist"),
        (["--out", out, "--dtype", "bfloat16"], "no products or convolutions in bfloat16"),
        (["--out", out, "--targets", "0"], "expected a whole number from 1, or dynamic"),
        (["--out", out, "--targets", "many"], "expected a whole number from 1, or dynamic"),
        (["--out", out, "--targets", "5000"], "expected 1 to 64"),
        (["--out", out, "--weights", tmp_path / "none.safetensors"], "no such file"),
        (["--out", out, "--weights", weights, "--model", "base"], "not model 'base'"),
        ([], "--out"),
    ):
        assert command("export", *arguments).refuses(message), message
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "folder.onnx").mkdir()
    assert command("export", "--out", tmp_path / "folder.onnx").refuses("a directory")
    monkeypatch.setattr("ckd_fast.exporting.export.find_spec", lambda name: None if name == "onnxscript" else name)
    assert command("export", "--out", out).refuses("needs onnxscript, not installed: pip install 'ckd_fast[export]'")


def test_more_targets_than_a_reader_takes(tmp_path: Path) -> None:
    large = load_model("random", dataclasses.replace(PLAIN.config, search_size=640), seed=0)
    with pytest.raises(InputError, match="targets=64: a network of these sizes takes at most 17 in one call"):
        export_model(large, tmp_path / "x.onnx", targets=64)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before the network is traced."""
    small = load_model("random", SMALL)
    monkeypatch.setattr("ckd_fast.exporting.export.trace", lambda *_: pytest.fail("traced"))
    name = "rgb.blocks.0.qkv.weight"
    large = LoadedModel(SMALL, {**small.weights, name: small.weights[name] * 1e9}, {}, small.provenance)
    with pytest.raises(OutputError, match=r"blocks\.0.qkv.weight: beyond the range of float16"):
        export_model(large, tmp_path / "x.onnx", dtype="float16")
    monkeypatch.setattr("ckd_fast.exporting.export.MAX_BYTES", 1 << 24)
    with pytest.raises(OutputError, match="and an ONNX file holds at most 16777216; dtype='float16' needs half"):
        export_model(small, tmp_path / "x.onnx")
    for arguments in ({"dtype": "int8"}, {"crops": "float"}, {"targets": True}, {"targets": None}):
        with pytest.raises(InputError, match=next(iter(arguments))):
            export_model(small, tmp_path / "x.onnx", **arguments)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_graph_is_found(exported: Callable[[Case], Made]) -> None:
    """The file holds other weights than it should."""
    other = model(PLAIN.config, seed=4)
    with pytest.raises(OutputError, match=r"differs from the reference by .* in ONNX Runtime: it was not written"):
        verified(other, other.student(), exported(PLAIN).path)


def test_a_torch_that_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_more: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("torch.onnx.export", fail)
    path = tmp_path / "x.onnx"
    path.write_text("before")
    with pytest.raises(EngineError, match=r"cannot translate the network to ONNX: first line$"):
        export_model(load_model("random", SMALL), path, force=True)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
