"""The VOT toolkit itself drives the tracker, by both of its protocols, and gets the tracker's own boxes."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import sample
from support import ROOT

from ckd_fast import InputError, MultiTracker, Tracker
from ckd_fast.adapters.trax import follow
from ckd_fast.datasets import open_dataset
from ckd_fast.images import read_rgb, read_tir

FRAMES = 9
STACK = "title: test\nexperiments:\n  baseline:\n    type: unsupervised\n    repetitions: 1\n"
SEQUENCE = "channels.color=color/%08d.jpg\nchannels.ir=ir/%08d.jpg\nfps=25\nformat=default\nname=clip\n"
READ = "import json, sys; from vot.region.io import read_trajectory; rows = read_trajectory(sys.argv[1]);"
PRINT = "print(json.dumps([[r.x, r.y, r.width, r.height] if hasattr(r, 'width') else [] for r in rows]))"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return sample(tmp_path / "clip", FRAMES, seed=4)


def expected(clip: Path, weights: str) -> tuple[list[tuple[float, ...]], list[float]]:
    (sequence,) = open_dataset("folder", clip).sequences
    frames = sequence.frames()
    pairs = [(read_rgb(v), read_tir(i)) for v, i in zip(frames.visible, frames.infrared, strict=True)]
    tracker = Tracker(weights, engine="reference", device="cpu")
    tracker.init(*pairs[0], sequence.boxes()[0])
    results = [tracker.update(*pair) for pair in pairs[1:]]
    return [result.box for result in results], [result.score for result in results]


def test_trax_follows_several_targets_at_once(clip: Path, weights: str, tmp_path: Path) -> None:
    boxes, scores = expected(clip, weights)
    (sequence,) = open_dataset("folder", clip).sequences
    frames = sequence.frames()
    tracker = MultiTracker(weights, engine="reference", device="cpu")
    given: tuple[float, ...] = tuple(sequence.boxes()[0])
    other = (20.0, 30.0, 25.0, 20.0)
    pairs = list(zip(frames.visible, frames.infrared, strict=True))
    assert follow(tracker, *pairs[0], [given], restart=True) == [(given, 1.0)]
    assert follow(tracker, *pairs[1], [other], restart=False) == [(boxes[0], scores[0]), (other, 1.0)]
    for index in range(2, FRAMES):
        (box, score), _ = follow(tracker, *pairs[index], [], restart=False)
        assert box == pytest.approx(boxes[index - 1], abs=1e-2)
        assert score == pytest.approx(scores[index - 1], abs=1e-4)
    assert len(tracker) == 2  # it follows both, in one call per frame
    assert follow(tracker, *pairs[0], [given], restart=True) == [(given, 1.0)]  # and forgets the rest
    assert follow(tracker, *pairs[1], [], restart=False) == [(boxes[0], scores[0])]
    with pytest.raises(InputError, match=r"absent\.jpg: cannot be read"):
        follow(tracker, tmp_path / "absent.jpg", frames.infrared[2], [], restart=False)


def workspace(home: Path, clip: Path, weights: str) -> Path:
    sequence = home / "sequences" / "clip"
    for ours, theirs in (("visible", "color"), ("infrared", "ir")):
        (sequence / theirs).mkdir(parents=True)
        for number, path in enumerate(sorted((clip / ours).iterdir()), 1):
            shutil.copy(path, sequence / theirs / f"{number:08d}.jpg")
    shutil.copy(clip / "groundtruth.txt", sequence / "groundtruth.txt")
    (sequence / "sequence").write_text(SEQUENCE)
    (home / "sequences" / "list.txt").write_text("clip\n")
    (home / "stack.yaml").write_text(STACK)
    (home / "config.yaml").write_text("registry:\n- ./trackers.ini\nstack: stack.yaml\nsequences: sequences\n")
    entries = [
        f"[{name}]\nlabel = {name}\nprotocol = {protocol}\n"
        f"command = {sys.executable} -m ckd_fast.adapters.{module} --weights {weights} --engine reference\n"
        for name, protocol, module in (("by_trax", "trax", "trax"), ("by_folder", "folder", "vot"))
    ]
    (home / "trackers.ini").write_text("\n".join(entries))
    return home


@pytest.mark.integration
@pytest.mark.parametrize("name", ["by_trax", "by_folder"])
def test_the_toolkit_drives_the_tracker(clip: Path, weights: str, tmp_path: Path, name: str) -> None:
    missing = [module for module in ("vot", "trax") if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed: pip install 'ckd_fast[vot]'")
    home = workspace(tmp_path / "workspace", clip, weights)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "vot", "evaluate", "--workspace", str(home), name],
        capture_output=True, text=True, env=environment, timeout=200, check=False, cwd=home,
    )  # fmt: skip
    assert "Evaluation concluded successfuly" in done.stdout + done.stderr, done.stdout + done.stderr
    result = home / "results" / name / "baseline" / "clip" / "clip_001.bin"
    read = subprocess.run(
        [sys.executable, "-c", READ + PRINT, str(result)], capture_output=True, text=True, check=True, timeout=60
    )
    rows = json.loads(read.stdout.splitlines()[-1])
    boxes, scores = expected(clip, weights)
    assert len(rows) == FRAMES
    assert rows[0] == []  # the toolkit's mark of an initialisation
    assert np.allclose(rows[1:], boxes, atol=1e-3)  # the toolkit stores float32, the folder four decimals
    if name == "by_trax":
        confidence = result.with_name("clip_001_confidence.value").read_text().split()
        assert [float(value) for value in confidence[-len(scores) :]] == pytest.approx(scores, abs=1e-3)
