"""Engines agree step by step, and say what they lack."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from both import BOX, BOXES, Both, frames
from checkpoints import SMALL
from support import HAS_COMPILER, ROOT, run

from ckd_fast import InputError, load_model
from ckd_fast.engines import Search, Target, build_engine, step_names


def test_reference_reports_every_step_by_name() -> None:
    engine = build_engine("reference", load_model("random", SMALL), "cpu")
    seen: list[tuple[str, tuple[int, ...]]] = []
    searches = [Search(engine.make_target(frames(), BOX), BOX, 4.0)]
    engine.start(searches, frames(1), lambda name, value: seen.append((name, tuple(value.shape)))).result()
    assert tuple(name for name, _ in seen) == step_names(SMALL)
    shapes = dict(seen)
    assert shapes["crop"] == (2, 1, 3, 256, 256)
    assert shapes["block1.eliminate"] == (2, 1, 180)
    assert shapes["block1.mlp"] == (2, 1, 244, 32)
    assert shapes["decode"] == (1, 4)


def test_many_targets_are_single_targets() -> None:
    engine = build_engine("reference", load_model("random", SMALL), "cpu")
    searches = [Search(engine.make_target(frames(), box), box, 4.0) for box in BOXES]
    together = engine.start(searches, frames(1)).result()
    for index, found in enumerate(together):
        (alone,) = engine.start(searches[index : index + 1], frames(1)).result()
        assert alone.cell == found.cell
        assert alone.box == pytest.approx(found.box, abs=1e-3)


def test_engines_refuse_what_they_cannot_do() -> None:
    model = load_model("random", SMALL)
    with pytest.raises(InputError, match="known are"):
        build_engine("fast", model, "cpu")
    engine = build_engine("reference", model, "cpu")
    search = Search(engine.make_target(frames(), BOX), BOX, 4.0)
    with pytest.raises(ValueError, match="twice"):
        engine.start([search, dataclasses.replace(search, factor=5.0)], frames(1))
    with pytest.raises(ValueError, match="every search needs one"):
        engine.start([Search(search.target, None, 4.0)], frames(1))
    with pytest.raises(InputError, match="another engine"):
        engine.start([Search(Target(owner=None), BOX, 4.0)], frames(1))


COMPILE = """
import dataclasses, sys
from both import BOX, BOXES, Both, frames
from checkpoints import SMALL
from ckd_fast import EngineError, load_model
from ckd_fast.engines import Search, build_engine
model = load_model("random", SMALL, seed=3)
try:
    compiled = build_engine("compiled", model, "cpu")
except EngineError as error:
    print("EngineError:", error)
    sys.exit(7)
both = Both(compiled, build_engine("reference", model, "cpu"), limit=1e-2)
target, box = both.target(), BOX
for pair in (frames(1), frames(2), frames(3), dataclasses.replace(frames(1), rgb=None)):
    (found,) = both.agree(pair, (target, box))
    box = found.box
both.agree(frames(1), *((both.target(each), each) for each in BOXES))
try:
    compiled.start([Search(target[0], box, 4.0)], frames(1), print).result()
except ValueError as error:
    assert "cannot be observed" in str(error)
else:
    raise AssertionError("observed")
print("agree")
"""


def run_compile(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    return run(sys.executable, "-c", COMPILE, cwd=tmp_path, **(known | environment))


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
    both = Both(*(build_engine("reference", model, device) for device in ("cuda", "cpu")))
    both.agree(frames(1), (both.target(), BOX))
