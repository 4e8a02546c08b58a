"""The committed figures of experiments/agreement.py hold the bounds; the program measures on a short clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import agreement
import pytest
from support import ROOT

RESULTS = ROOT / "experiments" / "results"


def rows(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((RESULTS / name).read_text())["rows"]
    return found


@pytest.mark.parametrize("model", ["packaged-none", "packaged-mce"])
@pytest.mark.parametrize(("precision", "kept", "overlap"), [
    ("bfloat16", 0.97, 0.98), ("int8", 0.93, 0.95), ("int8-emulated", 0.93, 0.95),
])  # fmt: skip
@pytest.mark.parametrize("file", ["agreement-packaged.json", "agreement-packaged-avx512.json"])
def test_real_clips_hold_the_bounds(file: str, model: str, precision: str, kept: float, overlap: float) -> None:
    (row,) = [r for r in rows(file) if (r["model"], r["precision"]) == (model, precision)]
    assert row["clips"] == "real"
    assert row["frames"] >= 600
    assert len(row["free_per_clip"]) == 11
    assert row["kept"] >= kept
    assert row["iou"] >= overlap


@pytest.mark.parametrize(("model", "precision", "kept", "overlap"), [
    ("small", "bfloat16", 0.75, 0.95), ("small", "int8", 0.86, 0.94), ("small", "int8-emulated", 0.87, 0.95),
    ("base", "bfloat16", 0.75, 0.75), ("base", "int8", 0.85, 0.73), ("base", "int8-emulated", 0.85, 0.83),
])  # fmt: skip
@pytest.mark.parametrize("file", ["agreement-random.json", "agreement-random-avx512.json"])
def test_random_weights_hold_what_was_measured(
    file: str, model: str, precision: str, kept: float, overlap: float
) -> None:
    """Lower than wanted: tokens at the border differ by less than rounding, see docs/quantization.md."""
    (row,) = [r for r in rows(file) if (r["model"], r["precision"]) == (model, precision)]
    assert row["frames"] == 10
    assert row["kept"] >= kept
    assert row["iou"] >= overlap


def test_the_program_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    file = tmp_path / "a.json"
    monkeypatch.setattr(agreement, "CALIBRATION_CLIPS", 1)
    monkeypatch.setattr("sys.argv", ["agreement.py", "--models", "packaged-mce", "--frames", "6", "--json", str(file)])
    agreement.main()
    found = {row["precision"]: row for row in json.loads(file.read_text())["rows"]}
    assert list(found) == ["float32", "bfloat16", "int8", "int8-emulated"]
    for precision, row in found.items():
        assert row["frames"] == 20  # four clips of six pairs, the first of which is the template
        if precision.startswith("int8"):
            assert row["kept"] >= 0.93
            assert row["iou"] >= 0.95
    # Rounding to eight bits changes the maps, and no more with eight bits of weights than with seven.
    assert 0 < found["int8-emulated"]["maps"] < 2 * found["int8"]["maps"]
    assert found["int8"]["engine"].startswith("openvino on cpu, int8 (34 of 34 layers")
