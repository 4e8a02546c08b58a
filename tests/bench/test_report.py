"""The page's section on GPUs is what the result files say."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import report

TIMES = {"count": 9, "mean_ms": 0.5, "best_ms": 0.4, "median_ms": 0.48, "p90_ms": 0.6, "p99_ms": 0.7}
MACHINE = {
    "device": "NVIDIA H200", "torch": "2.11.0", "triton": "3.6.0", "driver": "580", "date": "2026-12-01T10:00:00",
    "commit": "abc1234",
}  # fmt: skip
MADE_UP = {
    "fps": {"results": [
        {"engine": "triton", "dtype": "bfloat16", "protocol": "paper", "fps": 2000.0, "times": TIMES},
        {"engine": "reference", "dtype": "float32", "protocol": "end-to-end", "fps": 100.0, "times": TIMES},
    ]},
    "targets": {"result": {"matmul_tflops": 790.0, "rows": [
        {"targets": 32, "end_to_end": TIMES, "network_ms": 8.0, "share_of_matmul_ceiling": 0.456},
        {"targets": 1, "end_to_end": TIMES, "network_ms": 0.4, "share_of_matmul_ceiling": None},
    ]}},
    "agreement": {"result": {
        "triton float32": {"mean_iou": 0.99994, "least_iou": 0.9, "same_cell": 1.0, "kept": 0.9876},
    }},
    "energy": {"result": {"idle_watts": 70.2, "rows": [
        {"engine": "triton bfloat16", "frames": 9, "joules_a_frame": 0.21, "watts": 401.0},
    ]}},
    "kernels": {
        "frames": [{"targets": 1, "ours_us": 480.4, "library_us": 400.2, "library_calls": 60}],
        "launches": [{
            "targets": 1, "launch": "decode 256 cells", "count": 1, "warm_us": 3.0, "cold_us": 4.0, "floor_us": 0.1,
            "library_warm_us": None, "library_cold_us": None,
        }],
    },
    "parity": {"passed": 200, "failed": 0, "skipped": 3, "not_run": 0},
    "sanitize": {"checks": {"memcheck": "clean"}},
    "first": {"result": {"cold": {"frames_ms": [14_000.0], "engine_s": 7.0}}},
}  # fmt: skip


def archived(folder: Path, name: str, content: object) -> None:
    file = folder / name
    file.write_text(json.dumps(content))
    with tarfile.open(folder / "part1.tar.gz", "w:gz") as archive:
        archive.add(file, f"part1/{name}")


def test_the_page_agrees_with_the_files() -> None:
    page = report.PAGE.read_text()
    assert report.page_with(report.written(report.RESULTS), page) == page


def test_every_table(tmp_path: Path) -> None:
    assert report.written(tmp_path) == report.NOTHING
    for section, content in MADE_UP.items():
        (tmp_path / f"gpu-h200-{section}.json").write_text(json.dumps({"machine": MACHINE, **content}))
    told = report.written(tmp_path)
    for line in (
        "### NVIDIA H200", "torch 2.11.0, Triton 3.6.0, driver 580, 2026-12-01, commit abc1234.",
        "| `triton` | bfloat16 |  |  | 0.480 (0.400), 2000 |", "| `reference` | float32 | 0.480 (0.400), 100 |  |  |",
        "| 32 | 0.480 | 8.000 | 46 % |", "| triton float32 | 0.9999 | 0.9000 | 1.0000 | 0.9876 |",
        "| triton bfloat16 | 0.2100 | 401 |", "| 1 | 480 | 400 | 60 |",
        "| decode 256 cells | 1 | 3.0 | 4.0 | 0.1 |  |  |",
        "- tests of kernels and engine: 200 passed, 0 failed, 3 skipped, 0 not run",
        "- compute-sanitizer memcheck: clean",
        "- first frame with a cold kernel cache: 14.00 s, engine 7.0 s",
    ):  # fmt: skip
        assert f"{line}\n" in told or f"{line}\n\n" in told, line
    assert told.index("| 1 | 0.480") < told.index("| 32 |")


def test_results_are_brought_but_not_those_of_a_rehearsal(tmp_path: Path) -> None:
    out, results = tmp_path / "out", tmp_path / "results"
    out.mkdir()
    archived(out, "energy.json", {"machine": MACHINE, **MADE_UP["energy"]})
    assert report.bring(out, results) == ["gpu-h200-energy.json"]
    assert list(report.read(results)) == ["h200"]
    archived(out, "energy.json", {"machine": MACHINE, "arguments": {"rehearse": "True"}})
    with pytest.raises(SystemExit):
        report.bring(out, results)
