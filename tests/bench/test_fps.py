"""`python bench/fps.py` from a plain checkout: table, JSON, one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from support import HAS_COMPILER, ROOT, run

from ckd_fast.reference.config import preset
from ckd_fast.reference.cost import model_cost

HAS_OPENVINO = find_spec("openvino") is not None
HAS_NNCF = find_spec("nncf") is not None
HAS_EXPORT = find_spec("onnxscript") is not None and find_spec("onnxruntime") is not None


def fps(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, ROOT / "bench" / "fps.py", *arguments, cwd=cwd)


@pytest.mark.parametrize("protocol", ["end-to-end", "paper"])
def test_reference(tmp_path: Path, protocol: str) -> None:
    out = tmp_path / "deep" / "fps.json"
    more = ("--model", "tiny", "--iterations", "4", "--warmup", "1", "--json", str(out), "--protocol", protocol)
    done = fps("--engine", "reference", *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "reference tiny mce float32" in done.stdout
    told = json.loads(out.read_text())
    (result,) = told["results"]
    assert result["protocol"] == protocol
    times = result["times"]
    assert times["count"] == 4
    assert 0 < times["best_ms"] <= times["median_ms"] <= times["p99_ms"]
    assert result["fps"] == pytest.approx(1e3 / times["mean_ms"])
    assert {"device", "torch", "commit", "date", "threads"} <= set(told["machine"])


def test_all_leaves_out_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "fps.json"
    more = ("--iterations", "6", "--warmup", "1", "--json", str(out), "--elimination", "none")
    done = fps("--engine", "all", "--model", "tiny", *more)
    assert done.returncode == 0, done.stderr
    assert "left out: engine 'triton' needs a usable NVIDIA GPU" in done.stdout
    told = json.loads(out.read_text())
    expected = ["reference", *["compiled"] * HAS_COMPILER, *["openvino"] * HAS_OPENVINO, *["onnx"] * HAS_EXPORT]
    assert [r["engine"] for r in told["results"]] == expected
    assert [r["times"]["count"] for r in told["results"]] == [6] * len(expected)
    assert HAS_COMPILER or "left out: engine 'compiled' cannot compile" in done.stdout
    assert HAS_OPENVINO or "left out: engine 'openvino' needs the package openvino" in done.stdout


def test_an_engine_that_does_not_run_here_leaves_the_others_their_rows(tmp_path: Path) -> None:
    out = tmp_path / "fps.json"
    more = ("--model", "tiny", "--iterations", "2", "--warmup", "1", "--json", str(out))
    done = fps("--engine", "reference", "triton:bfloat16", *more)
    assert done.returncode == 1
    assert "left out: engine 'triton' needs a usable NVIDIA GPU" in done.stdout
    assert [row["engine"] for row in json.loads(out.read_text())["results"]] == ["reference"]


@pytest.mark.skipif(not HAS_EXPORT, reason="not installed: pip install 'ckd_fast[export]'")
def test_peers_and_the_ceiling(tmp_path: Path) -> None:
    out = tmp_path / "fps.json"
    more = ("--model", "tiny", "--iterations", "2", "--warmup", "1", "--json", str(out))
    done = fps("--engine", "reference", "openvino:float32", "--peers", *more)
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text())
    names = [result["engine"] for result in told["results"]]
    assert names == ["reference", "openvino", "onnxruntime", "plain-openvino"]
    for result in told["results"]:
        rate = told["executed_gflop"] / result["times"]["median_ms"] * 1e3
        assert result["ceiling_share"] == pytest.approx(rate / told["ceiling_gflops"]["float32"])
        assert 0 < result["ceiling_share"] < 1
    with_attention = 2 * model_cost(preset("tiny")).macs_with_attention / 1e9
    assert 0.8 * with_attention < told["executed_gflop"] < with_attention


@pytest.mark.skipif(not HAS_EXPORT or not HAS_OPENVINO, reason="not installed: pip install 'ckd_fast[export,cpu]'")
def test_int8_and_its_peer(tmp_path: Path) -> None:
    out = tmp_path / "fps.json"
    more = ("--model", "tiny", "--iterations", "2", "--warmup", "1", "--json", str(out))
    done = fps("--engine", "openvino:int8", "--peers", *more)
    assert done.returncode == 0, done.stderr
    found = [(result["engine"], result["dtype"]) for result in json.loads(out.read_text())["results"]]
    assert found == [("openvino", "int8"), *[("plain-openvino", "int8")] * HAS_NNCF]
    assert (
        HAS_NNCF
        or "left out: plain-openvino int8: No module named 'nncf': pip install 'ckd_fast[peers]'" in done.stdout
    )
    assert "left out: onnxruntime int8: " in done.stdout


@pytest.mark.skipif(not HAS_EXPORT or not HAS_OPENVINO, reason="not installed: pip install 'ckd_fast[export,cpu]'")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_peers_that_would_run_float32_instead(tmp_path: Path, dtype: str) -> None:
    """OpenVINO does so without a word."""
    from ckd_fast.engines.openvino.runtime import openvino_core

    if dtype == "bfloat16" and "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor multiplies bfloat16")
    out = tmp_path / "fps.json"
    more = ("--model", "tiny", "--iterations", "1", "--warmup", "0", "--json", str(out))
    done = fps("--engine", f"reference:{dtype}", "--peers", *more)
    assert done.returncode == 0, done.stderr
    reason = f"OpenVINO does not run torch.{dtype} on this processor"
    assert f"left out: plain-openvino {dtype}: {reason}\n" in done.stdout
    assert done.stdout.count(f"left out of the ceiling: {reason}\n") == 1
    (result,) = json.loads(out.read_text())["results"]
    assert result["engine"] == "reference"
    assert 0 < result["ceiling_share"] < 1


def test_shares_of_the_steps(tmp_path: Path) -> None:
    out = tmp_path / "fps.json"
    done = fps("--no-graph", "--model", "tiny", "--iterations", "2", "--warmup", "1", "--json", str(out))
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text())
    assert list(told["groups_ms"]) == [
        "crop", "patch_embed", "attention", "mlp", "elimination", "norm", "head", "decode",
    ]  # fmt: skip
    assert sum(told["groups_ms"].values()) == pytest.approx(sum(told["steps_ms"].values()))
    assert all(value > 0 for value in told["steps_ms"].values())


@pytest.mark.parametrize(("arguments", "message"), [
    (("--engine", "triton"), "needs a usable NVIDIA GPU"),
    (("--model", "huge"), "unknown model 'huge'"),
    (("--iterations", "0"), "--iterations must be at least 1"),
    (("--json", str(ROOT)), "cannot be written"),
    (("--no-graph", "--engine", "compiled"), "observes one engine"),
    (("--device", "cuda"), "sees no usable GPU"),
])  # fmt: skip
def test_errors_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = fps(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
