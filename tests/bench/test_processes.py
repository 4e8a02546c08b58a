"""`python bench/processes.py`: frames per second of several processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support import ROOT, run


def test_processes_are_counted_together(tmp_path: Path) -> None:
    out = tmp_path / "processes.json"
    more = ("--engine", "reference", "--threads", "1", "--seconds", "1", "--json", str(out))
    done = run(sys.executable, ROOT / "bench" / "processes.py", "--processes", "1", "2", *more)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [row["processes"] for row in rows] == [1, 2]
    assert rows[0]["share"] == 1
    assert rows[1]["share"] == pytest.approx(rows[1]["fps"] / rows[0]["fps"])
    assert all(row["fps"] > 1 for row in rows)
