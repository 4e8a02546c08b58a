"""The log of a run: lines of JSON, and TensorBoard events if they are wanted."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from ckd_fast.errors import EngineError, OutputError

LOG = "log.jsonl"


class Board(Protocol):
    """The part of TensorBoard's writer that is used."""

    def add_scalar(self, tag: str, value: float, step: int) -> None: ...

    def close(self) -> None: ...


def memory_mb(device: torch.device) -> float:
    """Peak memory: of the GPU where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, kilobytes elsewhere


class RunLog:
    """`log.jsonl` in a run's folder.

    Args:
        out: the run's folder.
        after: lines of later steps are dropped: a resumed run writes them again.
        board: a TensorBoard writer for the same numbers.
    """

    def __init__(self, out: Path, after: int, board: Board | None = None) -> None:
        self._path, self._board = out / LOG, board
        try:
            if self._path.exists():
                lines = self._path.read_text(encoding="utf-8").splitlines()
                kept = [line for line in lines if _step_of(line) <= after]
                self._path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written ({error.strerror or error})") from error

    def write(self, kind: str, step: int, values: Mapping[str, float | int | str]) -> None:
        """Write one line at once."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if not isinstance(value, str):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _step_of(line: str) -> float:
    """A line's step; infinity for a line that a killed run left half-written."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def open_board(folder: Path) -> Board:
    """A TensorBoard writer; needs the extra `tensorboard`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise EngineError("--tensorboard needs tensorboard: pip install 'ckd_fast[tensorboard]'") from error
    writer: Board = SummaryWriter(str(folder))
    return writer
