"""The command line as tests call it, in this process and in another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import ROOT

from ckd_fast.cli import main

ON_CPU = ("--engine", "reference", "--device", "cpu")


@dataclass(frozen=True)
class Printed:
    """What a command left: its exit code and what it printed."""

    code: int | str | None
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What was printed, which is JSON and nothing else."""
        return json.loads(self.out)

    def refuses(self, message: str) -> bool:
        """The input was bad, and the message says so."""
        return self.code == 2 and message in self.err


Command = Callable[..., Printed]


def sample(out: Path, frames: int, *more: object, seed: int = 0, size: str = "160x120") -> Path:
    """A synthetic clip, as `ckd-fast sample` writes it."""
    command = ["sample", out, "--frames", frames, "--size", size, "--seed", seed, *more]
    assert main([str(argument) for argument in command]) == 0
    return out


def looped(out: Path, frames: int, seed: int) -> Path:
    """A clip of twelve images that are linked again and again: cheap to write, long to track."""
    sample(out, 12, seed=seed)
    for folder in ("visible", "infrared"):
        first = sorted((out / folder).iterdir())
        for number in range(13, frames + 1):
            os.link(first[number % 12], first[0].with_name(f"{number:06d}.jpg"))
    return out


def tracking_run(data: Path, weights: str, out: Path, *more: object) -> list[object]:
    """`ckd-fast run` over a folder of clips."""
    where = ["--dataset", "folder", "--root", data, "--weights", weights, "--out", out]
    return ["run", *where, *ON_CPU, "--quiet", *more]


def results(folder: Path) -> dict[str, str]:
    """The files of boxes that a run wrote."""
    return {path.name: path.read_text() for path in folder.glob("*.txt") if not path.name.endswith("_time.txt")}


def by_module(*arguments: object) -> list[str]:
    """The command line of a process of its own."""
    return [sys.executable, "-m", "ckd_fast", *map(str, arguments)]


def unheard(arguments: list[str], *, closed: str = "", broken: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Run a command to which nobody listens.

    Args:
        arguments: the command.
        closed: streams that the shell closes, as `2>&-`.
        broken: of stdout and stderr those that are pipes without a reader; the others are captured.
    """
    read_end, write_end = os.pipe()
    os.close(read_end)
    streams = {name: write_end if name in broken else subprocess.PIPE for name in ("stdout", "stderr")}
    try:
        return subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *arguments], cwd=ROOT, check=False, **streams)
    finally:
        os.close(write_end)


def descendants(pid: int) -> list[int]:
    """Processes that this one started, and theirs, by their ids."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


def called(pids: list[int], part: bytes) -> list[int]:
    """Those whose command line has this part; a process may end while we look."""
    found = []
    for pid in pids:
        with suppress(OSError):
            if part in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found
