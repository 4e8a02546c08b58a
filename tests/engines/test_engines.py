"""Engines agree step by step, and say what they lack."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import SMALL
from support import HAS_COMPILER

from ckd_fast import InputError, TrackerConfig, load_model
from ckd_fast.engines import Search, Target, build_engine, step_names
from ckd_fast.frames import FrameForm, RawPair

BOX = (40.0, 30.0, 24.0, 20.0)


def pair(seed: int = 0) -> RawPair:
    generator = np.random.default_rng(seed)
    rgb, tir = generator.integers(0, 256, (2, 96, 128, 3), dtype=np.uint8)
    return RawPair(rgb, tir, FrameForm((96, 128), (96, 128), None), TrackerConfig())


def test_reference_reports_every_step_by_name() -> None:
    engine = build_engine("reference", load_model("random", SMALL), "cpu")
    target = engine.make_target(pair(), BOX)
    seen: list[tuple[str, tuple[int, ...]]] = []
    engine.start(
        [Search(target, BOX, 4.0)], pair(1), lambda name, value: seen.append((name, tuple(value.shape)))
    ).result()
    assert tuple(name for name, _ in seen) == step_names(SMALL)
    shapes = dict(seen)
    assert shapes["crop"] == (2, 1, 3, 256, 256)
    assert shapes["block1.eliminate"] == (2, 1, 180)
    assert shapes["block1.mlp"] == (2, 1, 244, 32)
    assert shapes["decode"] == (1, 4)


def test_many_targets_are_single_targets() -> None:
    engine = build_engine("reference", load_model("random", SMALL), "cpu")
    boxes = [BOX, (10.0, 10.0, 40.0, 20.0), (70.0, 40.0, 50.0, 50.0)]
    targets = [engine.make_target(pair(), box) for box in boxes]
    searches = [Search(target, box, 4.0) for target, box in zip(targets, boxes, strict=True)]
    together = engine.start(searches, pair(1)).result()
    for index, found in enumerate(together):
        (alone,) = engine.start(searches[index : index + 1], pair(1)).result()
        assert alone.cell == found.cell
        assert alone.box == pytest.approx(found.box, abs=1e-3)


def test_engines_refuse_what_they_cannot_do() -> None:
    model = load_model("random", SMALL)
    with pytest.raises(InputError, match="known are"):
        build_engine("onnx", model, "cpu")
    engine = build_engine("reference", model, "cpu")
    search = Search(engine.make_target(pair(), BOX), BOX, 4.0)
    with pytest.raises(ValueError, match="twice"):
        engine.start([search, dataclasses.replace(search, factor=5.0)], pair(1))
    with pytest.raises(ValueError, match="every search needs one"):
        engine.start([Search(search.target, None, 4.0)], pair(1))
    with pytest.raises(InputError, match="another engine"):
        engine.start([Search(Target(), BOX, 4.0)], pair(1))


COMPILE = """
import sys, numpy as np, torch
from ckd_fast import EngineError, ModelConfig, TrackerConfig, load_model
from ckd_fast.engines import Search, build_engine
from ckd_fast.frames import FrameForm, RawPair
config = ModelConfig(dim=32, depth=2, heads=2, head_channels=16, eliminate_at=(1,))
model = load_model("random", config, seed=3)
try:
    compiled = build_engine("compiled", model, "cpu")
except EngineError as error:
    print("EngineError:", error)
    sys.exit(7)
reference = build_engine("reference", model, "cpu")
generator = np.random.default_rng(0)
about = FrameForm((96, 128), (96, 128), None), TrackerConfig()
frames = [RawPair(*generator.integers(0, 256, (2, 96, 128, 3), dtype=np.uint8), *about) for _ in range(4)]
box = (40.0, 30.0, 24.0, 20.0)
targets = [engine.make_target(frames[0], box) for engine in (reference, compiled)]
for pair in (*frames[1:], RawPair(None, frames[1].tir, *about)):
    first, second = (e.start([Search(s, box, 4.0)], pair).result()[0] for e, s in zip((reference, compiled), targets))
    assert first.cell == second.cell, (first, second)
    assert max(abs(a - b) for a, b in zip(first.box, second.box)) < 1e-2, (first, second)
    box = first.box
others = [(10.0, 10.0, 40.0, 20.0), (70.0, 40.0, 50.0, 50.0), (20.0, 30.0, 15.0, 25.0)]
three = [[Search(e.make_target(frames[0], b), b, 4.0) for b in others] for e in (reference, compiled)]
for first, second in zip(*(e.start(s, frames[1]).result() for e, s in zip((reference, compiled), three)), strict=True):
    assert first.cell == second.cell and max(abs(a - b) for a, b in zip(first.box, second.box)) < 1e-2
try:
    compiled.start([Search(targets[1], box, 4.0)], frames[1], print).result()
except ValueError as error:
    assert "cannot be observed" in str(error)
else:
    raise AssertionError("observed")
print("agree")
"""


def run_compile(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    everything = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), **environment}
    command = [sys.executable, "-c", COMPILE]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=everything, cwd=tmp_path)


@pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler here (g++)")
def test_compiled_is_the_reference(tmp_path: Path) -> None:
    done = run_compile(tmp_path)
    assert done.stdout.endswith("agree\n"), done.stdout + done.stderr


def test_compiled_without_a_compiler_says_so(tmp_path: Path) -> None:
    done = run_compile(tmp_path, CXX="/nonexistent/g++", PATH="/nonexistent")
    assert done.returncode == 7, done.stdout + done.stderr
    assert "EngineError: engine 'compiled' cannot compile on cpu" in done.stdout
    assert "a C++ compiler" in done.stdout


@pytest.mark.gpu
def test_reference_on_a_gpu() -> None:
    model = load_model("random", SMALL, seed=3)
    found = []
    for device in ("cpu", "cuda"):
        engine = build_engine("reference", model, device)
        target = engine.make_target(pair(), BOX)
        found.append(engine.start([Search(target, BOX, 4.0)], pair(1)).result()[0])
    assert found[0].cell == found[1].cell
    assert torch.allclose(torch.tensor(found[0].box), torch.tensor(found[1].box), atol=0.1)
