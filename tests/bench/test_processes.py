"""`python bench/processes.py`: frames per second of several processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support import ROOT, run

PROCESSES = ROOT / "bench" / "processes.py"


def test_processes_are_counted_together(tmp_path: Path) -> None:
    out = tmp_path / "processes.json"
    more = ("--engine", "reference", "--threads", "1", "--seconds", "1", "--json", str(out))
    done = run(sys.executable, PROCESSES, "--processes", "1", "2", *more)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [row["processes"] for row in rows] == [1, 2]
    assert rows[0]["share"] == 1
    assert rows[1]["share"] == pytest.approx(rows[1]["fps"] / rows[0]["fps"])
    assert all(row["fps"] > 1 for row in rows)


@pytest.mark.timeout(90)
@pytest.mark.parametrize(("arguments", "message"), [
    (("--processes", "2", "--engine", "triton"), "needs a usable NVIDIA GPU"),
    (("--threads", "0"), "threads=0: expected a whole number from 1"),
    (("--processes", "0"), "--processes must be at least 1"),
    (("--seconds", "0"), "--seconds more than 0"),
])  # fmt: skip
def test_what_fails_ends_it_in_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    out = tmp_path / "processes.json"
    done = run(sys.executable, PROCESSES, "--json", out, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not out.exists()


KILLED = """
import os, signal, sys
sys.path.insert(0, "bench")
import processes

def follow(*_arguments):
    os.kill(os.getpid(), signal.SIGKILL)

processes.follow = follow
if __name__ == "__main__":
    processes.together(1, "reference", 1, 1.0)
"""


@pytest.mark.timeout(90)
def test_a_killed_process_ends_it(tmp_path: Path) -> None:
    program = tmp_path / "killed.py"
    program.write_text(KILLED)
    done = run(sys.executable, program)
    assert done.returncode == 2
    assert done.stderr == "killed.py: a process ended with exit code -9\n"
