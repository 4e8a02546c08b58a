"""Text files of data sets and results: names, and boxes as tables of numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ckd_fast.errors import InputError
from ckd_fast.files import reading

LARGEST_TEXT = 1 << 26  # bytes; a million boxes take a third of it


def read_text(path: Path) -> str:
    """A text file of bounded size, without a byte order mark."""
    with reading(path):
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: not a file")  # opening a pipe would block
        size = path.stat().st_size
        if size > LARGEST_TEXT:
            raise InputError(f"{path}: {size} bytes; expected a text file of at most {LARGEST_TEXT}")
        try:
            return path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not a text file (byte {error.start})") from error


def read_names(path: Path) -> list[str]:
    """Names of sequences, one per line. They become file names, so none may contain a path."""
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    for name in names:
        if name in (".", "..") or re.search(r"[/\\\x00]", name):
            raise InputError(f"{path}: {name[:60]!r} is not a sequence name")
    return names


@dataclass(frozen=True)
class Table:
    """The numbers in a file."""

    values: NDArray[np.float64]  # [rows, columns] float64; "nan" stays NaN
    separators: tuple[str, ...]  # which of comma, tab and space separate the numbers; several if lines differ


def _cells(line: str) -> list[str]:
    # Between commas a cell may be empty, between blanks it cannot be.
    return [cell.strip() for cell in line.split(",")] if "," in line else line.split()


def _separator(line: str) -> str:
    return "comma" if "," in line else "tab" if "\t" in line.strip() else "space"


def read_table(path: Path) -> Table:
    """Read a table: numbers separated by commas, or by tabs and spaces; the same count in every line."""
    lines = read_text(path).rstrip().splitlines()
    if not lines:
        raise InputError(f"{path}: empty; expected numbers, one box per line")
    cells = [_cells(line) for line in lines]
    width = len(cells[0])
    if not width:
        raise InputError(f"{path}, line 1: empty; expected numbers, one box per line")
    for number, row in enumerate(cells, 1):
        if len(row) != width:
            raise InputError(f"{path}, line {number}: {len(row)} numbers where line 1 has {width}")
    if any("_" in line for line in lines):  # Python reads 1_0 as 10
        raise InputError(_first_bad_number(path, cells))
    try:
        values = np.array(cells, dtype=np.float64)
    except ValueError:
        raise InputError(_first_bad_number(path, cells)) from None
    return Table(values, tuple(sorted({_separator(line) for line in lines})))


def _first_bad_number(path: Path, cells: list[list[str]]) -> str:
    for number, row in enumerate(cells, 1):
        for cell in row:
            try:
                float(cell.replace("_", "x"))
            except ValueError:
                return f"{path}, line {number}: {cell[:40]!r} is not a number"
    return f"{path}: holds something that is not a number"
