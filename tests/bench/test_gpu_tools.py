"""What runs on a GPU, tried without one as far as it goes: engines in the interpreter, clocks that stand still."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import gpu
import pytest
import timing
import torch
from interpreter import repair_bf16, repair_fma
from support import INTERPRETED, ROOT, large_tiles

from ckd_fast.engines import Engine
from ckd_fast.engines.host import ReferenceEngine
from ckd_fast.engines.triton import TritonEngine
from ckd_fast.kernels.tiles import H200, Choice, Measured, Tiles, Work, chooser, default_choice, read_table, write_table
from ckd_fast.reference.config import ModelConfig
from ckd_fast.weights import LoadedModel

CPU = torch.device("cpu")
CONFIG = ModelConfig(dim=48, depth=2, heads=3, head_channels=24, eliminate_at=(1,), template_size=32, search_size=80)


def on_the_cpu(name: str, model: LoadedModel, _device: str, dtype: str) -> Engine:
    if name == "triton":
        return TritonEngine(model, CPU, getattr(torch, dtype), choose=large_tiles)
    return ReferenceEngine(model, CPU, getattr(torch, dtype))


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    if not INTERPRETED:
        pytest.skip("on a GPU bench/gpu.sh runs them")
    repair_bf16()
    repair_fma()
    monkeypatch.setattr(gpu, "build_engine", on_the_cpu)
    monkeypatch.setattr(gpu, "preset", lambda _name: CONFIG)
    monkeypatch.setattr(gpu, "load_model", lambda *_: __import__("ckd_fast").load_model("random", CONFIG, 1))
    monkeypatch.setattr(gpu, "awaited", lambda call: call() and 2.0)
    monkeypatch.setattr(timing, "matmul_ceiling_tflops", lambda: 700.0)
    return argparse.Namespace(model="base", weights=None, dtype="float32", counts=[1, 3], frames=2, turns=1, failed=[])


def test_targets(options: argparse.Namespace) -> None:
    told = gpu.targets(options)
    assert [row["targets"] for row in told["rows"]] == [1, 3]
    assert told["rows"][1]["share_of_matmul_ceiling"] == pytest.approx(90.0 * 3 / 2.0 / 700)


def test_agreement(options: argparse.Namespace) -> None:
    told = gpu.agreement(options)
    assert set(told) == {"reference bfloat16", "triton float32", "triton float16", "triton bfloat16"}
    assert told["triton float32"]["least_iou"] > 0.999
    assert told["triton float32"]["same_cell"] == 1
    assert not [failure for failure in options.failed if "float32" in failure]


def test_disagreement_fails(options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "iou", lambda *_: 0.5)
    gpu.agreement(options)
    assert options.failed[0] == "triton float32: mean IoU 0.50000 is below 0.999"
    assert len(options.failed) == 3


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)


def test_a_frame_on_paper(tmp_path: Path) -> None:
    out = tmp_path / "model.json"
    done = run(sys.executable, "bench/model.py", "--json", str(out))
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text())
    assert told["summary"]["launches"] == len(told["launches"]) == 80
    # 45.0 GMAC less what is saved by multiplying live tokens only in the head's first convolution.
    assert sum(row["gflop"] for row in told["launches"]) == pytest.approx(2 * (44.982 - 2.718 + 0.945), rel=0.01)
    assert 0.1 < told["summary"]["floor_ms"] < told["summary"]["overlapped_ms"] < told["summary"]["estimate_ms"]
    assert run(sys.executable, "bench/model.py", "--model", "nonsense").returncode == 2


@pytest.mark.parametrize("tool", ["gpu.py targets", "kernels.py", "tune.py"])
def test_without_a_gpu_they_say_so(tool: str) -> None:
    if not INTERPRETED:
        pytest.skip("there is a GPU")
    done = run(sys.executable, *f"bench/{tool}".split())
    assert done.returncode == 2
    assert done.stderr.endswith("torch sees none\n")


def test_the_script_counts_failures(tmp_path: Path) -> None:
    if not INTERPRETED:
        pytest.skip("there is a GPU")
    done = subprocess.run(
        ["bash", "bench/gpu.sh", str(tmp_path / "out"), "targets", "kernels"],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert "2 failed" in done.stdout
    assert subprocess.run(["bash", "bench/gpu.sh", str(tmp_path), "tea"], check=False, cwd=ROOT,
                          capture_output=True).returncode == 2  # fmt: skip


WORK = Work("linear", "bfloat16", 2, 320, 768, 768)


def test_measured_tiles_win_over_computed_ones(tmp_path: Path) -> None:
    path = tmp_path / "tiles.json"
    odd = Choice(Tiles(16, 16, 16, 2, 2), 3)
    write_table([Measured(H200.name, WORK, odd, 3.5, "3.6.0"), Measured("another", WORK, odd, 1.0, "3.6.0")], path)
    table = read_table(path)
    assert chooser(H200, table)(WORK) == odd
    other = dataclasses.replace(WORK, rows=321)
    assert chooser(H200, table)(other) == default_choice(other, H200)
    assert chooser(dataclasses.replace(H200, name="a third"), table)(WORK) == default_choice(WORK, H200)
    write_table([*table, Measured(H200.name, WORK, default_choice(WORK, H200), 3.0, "3.6.0")], path)
    assert chooser(H200, read_table(path))(WORK) == default_choice(WORK, H200)
    assert len(read_table(path)) == 2


def test_defaults_fill_the_chip() -> None:
    """Narrow products are split or cut small, wide ones are not split; everything fits the chip's memory."""
    narrow = default_choice(dataclasses.replace(WORK, rows=153, depth=3072), H200)
    assert narrow.split_k > 1
    assert default_choice(dataclasses.replace(WORK, rows=10240, columns=3072), H200).split_k == 1
    small = dataclasses.replace(H200, shared_bytes=65536, name="small")
    for rows in (89, 320, 10240):
        tiles = default_choice(dataclasses.replace(WORK, rows=rows), small).tiles
        assert tiles.stages * (tiles.rows + tiles.columns) * tiles.depth * 2 <= 65536


def test_the_table_that_ships_is_readable() -> None:
    for row in read_table():
        assert row.microseconds > 0
        assert row.choice.split_k >= 1
