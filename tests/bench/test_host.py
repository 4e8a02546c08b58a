"""`python bench/host.py`: what a frame takes beside the network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support import ROOT, run

HOST = ROOT / "bench" / "host.py"


def test_parts_are_smaller_than_the_whole(tmp_path: Path) -> None:
    out = tmp_path / "host.json"
    done = run(sys.executable, HOST, "--engine", "reference", "--frames", "5", "--json", out)
    assert done.returncode == 0, done.stderr
    rows = {row["part"]: row["times"] for row in json.loads(out.read_text())["rows"]}
    parts = sum(rows[name]["best_ms"] for name in ("prepare", "crop", "decode"))
    assert 0 < parts <= rows["all but the network"]["p99_ms"]
    assert rows["network"]["count"] == 5
    assert "packaged on reference on cpu" in done.stdout


@pytest.mark.parametrize(("option", "value", "message"), [
    ("--frames", "0", "--frames must be at least 1"),
    ("--model", "huge", "'huge'"),
])  # fmt: skip
def test_mistakes_are_one_line(tmp_path: Path, option: str, value: str, message: str) -> None:
    done = run(sys.executable, HOST, "--json", tmp_path / "host.json", option, value)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
