"""Every kernel compiles for Hopper without a GPU: no spills, shared memory within bounds, tensor cores in use.

In a process of its own, since interpreted and compiled kernels cannot share one. All chips: `bench/compile.py --all`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT


def compile_kernels(tmp_path: Path, *arguments: str) -> list[dict]:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, str(ROOT / "bench" / "compile.py"), "--json", str(tmp_path / "c.json"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    results: list[dict] = json.loads((tmp_path / "c.json").read_text())["results"]
    return results


def test_hopper(tmp_path: Path) -> None:
    results = compile_kernels(tmp_path)
    names = {result["variant"] for result in results}
    assert "attention with template rows (attention)" in names
    assert "fc2: residual, statistics, split 4 (join)" in names
    for result in results:
        assert result["spills"] == 0
        assert result["registers"] <= 255
        if result["variant"].endswith(("(linear)", "(attention)")):
            assert result["matrix_instructions"] >= 4


@pytest.mark.slow
def test_every_chip(tmp_path: Path) -> None:
    chips = {result["chip"] for result in compile_kernels(tmp_path, "--all")}
    assert chips == {"sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942"}
