"""The package as people meet it: a light import, a snapshot of the public names, a wheel that works elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from support import ROOT

import ckd_fast

PUBLIC = [
    "CkdFastError", "CorruptWeightsError", "EngineError", "InputError", "LoadedModel", "MissingModelError",
    "ModelConfig", "MultiTracker", "NotInitialisedError", "OutputError", "PRESETS", "Pending", "ScoringOptions",
    "Timings", "TrackResult", "Tracker", "TrackerConfig", "TrainingError", "WeightsError", "WeightsMismatchError",
    "__version__", "evaluate", "load_model", "open_dataset", "save_model",
]  # fmt: skip


EXTRAS = ("openvino", "nncf", "onnx", "onnxruntime", "onnxscript", "matplotlib", "shtab", "ray", "tensorboard", "trax")


def test_public_names() -> None:
    assert sorted(ckd_fast.__all__) == PUBLIC
    assert dir(ckd_fast) == PUBLIC
    for name in PUBLIC:
        assert getattr(ckd_fast, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'track'"):
        ckd_fast.track  # noqa: B018


def test_import_is_light() -> None:
    heavy = ("torch", "triton", "cv2", "numpy", "safetensors")
    code = f"import sys, ckd_fast; assert not {set(heavy)!r} & set(sys.modules), sys.modules.keys()"
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.3


def test_the_command_line_is_parsed_without_numpy() -> None:
    parse = "from ckd_fast.cli import build_parser; build_parser().parse_args(['info'])"
    code = f"import sys; {parse}; assert not {{'torch', 'numpy', 'cv2'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_version_is_in_the_changelog() -> None:
    assert f"## {ckd_fast.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.wheel
def test_wheel_works_elsewhere(tmp_path: Path) -> None:
    """Built from the checkout, installed into a new environment, used from another folder."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, env=clean)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    folders = [ROOT / "ckd_fast", ROOT / "ckd_fast" / "kernels", ROOT / "ckd_fast" / "reference"]
    sources = {str(path.relative_to(ROOT)) for folder in folders for path in folder.rglob("*.py")}
    assert len(sources) > 20
    report = {f"ckd_fast/evaluation/report.{kind}" for kind in ("css", "js")}
    assert sources | report | {"ckd_fast/py.typed", "ckd_fast/weights/packaged.safetensors"} <= set(names)
    assert not [n for n in names if n.startswith(("kernels/", "reference/", "bench/", "experiments/", "tests/"))]

    home = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, env=clean)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True, env=clean)
    # Dependencies come from the environment that runs the tests: installing torch again would take a minute.
    find = "import sysconfig; print(sysconfig.get_path('purelib'))"
    ours = subprocess.run([sys.executable, "-c", find], check=True, capture_output=True, text=True).stdout.strip()
    theirs = subprocess.run([python, "-c", find], check=True, capture_output=True, text=True, env=clean).stdout.strip()
    (Path(theirs) / "dependencies.pth").write_text(ours + "\n")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    use = (
        "import ckd_fast, ckd_fast.kernels, ckd_fast.reference.model\n"
        f"assert ckd_fast.__file__.startswith({str(home)!r}), ckd_fast.__file__\n"
        f"assert ckd_fast.reference.__file__.startswith({str(home)!r})\n"
        "ckd_fast.save_model(ckd_fast.load_model('random', 'tiny'), 'tiny.safetensors')\n"
        "print(ckd_fast.load_model('tiny.safetensors').config == ckd_fast.PRESETS['tiny'])\n"
        "print(ckd_fast.Tracker().lost_threshold == ckd_fast.load_model(None).lost_threshold)\n"
    )
    done = subprocess.run([python, "-c", use], check=True, capture_output=True, text=True, cwd=elsewhere, env=clean)
    assert done.stdout == "True\nTrue\n"
    # Without the packages of extras, which the environment that runs the tests has.
    track = (
        f"import sys; sys.modules.update(dict.fromkeys({EXTRAS!r}))\n"
        "import ckd_fast\n"
        "from ckd_fast.boxes import iou\n"
        "from ckd_fast.datasets import ClipConfig, SyntheticClip\n"
        "first, *others = SyntheticClip(ClipConfig(frames=4, seed=20_001))\n"
        "tracker = ckd_fast.Tracker(device='cpu')\n"
        "tracker.init(first.rgb, first.tir, first.box)\n"
        "print(min(float(iou(tracker.update(each.rgb, each.tir).box, each.box)) for each in others) > 0.5)\n"
        "print(tracker.engine)\n"
    )
    bare = subprocess.run([python, "-c", track], check=True, capture_output=True, text=True, cwd=elsewhere, env=clean)
    found, engine = bare.stdout.splitlines()
    assert found == "True"
    assert engine.startswith("reference on cpu, float32 (auto: no usable GPU; engine 'openvino' needs the package")
    assert "pip install 'ckd_fast[cpu]'" in engine
    script = home / ("Scripts/ckd-fast.exe" if os.name == "nt" else "bin/ckd-fast")
    info = subprocess.run(
        [script, "info", "--model", "base"], check=True, capture_output=True, text=True, cwd=elsewhere, env=clean
    )
    assert "183,871,365" in info.stdout
    pip_check = [python, "-m", "pip", "check"]
    check = subprocess.run(pip_check, capture_output=True, text=True, cwd=elsewhere, env=clean, check=False)
    # Of ours only: the new environment's own setuptools may be older than torch wants.
    assert not [line for line in check.stdout.splitlines() if line.lower().startswith(("ckd_fast", "ckd-fast"))]
