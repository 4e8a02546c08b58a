"""What readers of data sets, results and videos share: natural order, images of a folder, tables of numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ckd_fast.errors import InputError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"})
LARGEST_TEXT = 1 << 26  # bytes; a million boxes take a third of it


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sorts 2.jpg before 10.jpg."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def list_images(folder: Path) -> list[Path]:
    """The images of a folder in natural order; none is an error."""
    try:
        # Without hidden files: some systems leave companions like ._0001.jpg that are no images.
        found = [
            path
            for path in folder.iterdir()
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
        ]
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror or error})") from error
    if not found:
        raise InputError(f"{folder}: no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return sorted(found, key=lambda path: natural_key(path.name))


def mispaired(first: Sequence[Path], second: Sequence[Path]) -> str:
    """Says where images that are paired by order are of different numbers; empty if they are not.

    A number counts where the other side has it too, at another place: an image is missing there. Numbers of one side
    alone are names of another kind, as two cameras' time stamps are.
    """
    numbers = [[re.findall(r"\d+", path.stem) for path in paths] for paths in (first, second)]
    mine, theirs = ([int(found[-1]) if found else None for found in side] for side in numbers)
    shared = (set(mine) & set(theirs)) - {None}
    pairs = enumerate(zip(mine, theirs, strict=False))  # unequal counts are said elsewhere
    odd = [index for index, pair in pairs if pair[0] != pair[1] and shared.intersection(pair)]
    if not odd:
        return ""
    at = odd[0]
    return f"{len(odd)} pairs have different numbers, first {first[at].name} with {second[at].name}"


def read_text(path: Path) -> str:
    """A text file of bounded size, without the mark that some editors put in front."""
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: not a file")  # opening a pipe would wait for who writes into it
        size = path.stat().st_size
        if size > LARGEST_TEXT:
            raise InputError(f"{path}: {size} bytes; expected a text file of at most {LARGEST_TEXT}")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file (byte {error.start})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_names(path: Path) -> list[str]:
    """Names of sequences, one a line; a name with a path in it is refused, because it becomes part of one."""
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    for name in names:
        if name in (".", "..") or re.search(r"[/\\\x00]", name):
            raise InputError(f"{path}: {name[:60]!r} is no name of a sequence")
    return names


@dataclass(frozen=True)
class Table:
    """Rows of numbers of one file.

    Attributes:
        values: [rows, columns] float64; "nan" stays NaN.
        separators: what stands between the numbers, by line: comma, tab or space; several if lines differ.
    """

    values: NDArray[np.float64]
    separators: tuple[str, ...]


def _cells(line: str) -> list[str]:
    """Commas part cells, which may be empty; other than that any blanks do."""
    return [cell.strip() for cell in line.split(",")] if "," in line else line.split()


def _separator(line: str) -> str:
    return "comma" if "," in line else "tab" if "\t" in line.strip() else "space"


def read_table(path: Path) -> Table:
    """Numbers by line, between them commas, or tabs and spaces; every line must have equally many."""
    lines = read_text(path).rstrip().splitlines()
    if not lines:
        raise InputError(f"{path}: empty; expected numbers, one box a line")
    cells = [_cells(line) for line in lines]
    width = len(cells[0])
    if not width:
        raise InputError(f"{path}, line 1: empty; expected numbers, one box a line")
    for number, row in enumerate(cells, 1):
        if len(row) != width:
            raise InputError(f"{path}, line {number}: {len(row)} numbers where line 1 has {width}")
    if any("_" in line for line in lines):  # Python takes 1_0 for 10
        raise InputError(_first_that_is_no_number(path, cells))
    try:
        values = np.array(cells, dtype=np.float64)
    except ValueError:
        raise InputError(_first_that_is_no_number(path, cells)) from None
    return Table(values, tuple(sorted({_separator(line) for line in lines})))


def _first_that_is_no_number(path: Path, cells: list[list[str]]) -> str:
    for number, row in enumerate(cells, 1):
        for cell in row:
            try:
                float(cell.replace("_", "x"))
            except ValueError:
                return f"{path}, line {number}: {cell[:40]!r} is no number"
    return f"{path}: holds something that is no number"
