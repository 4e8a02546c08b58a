"""Challenge attributes of benchmark sequences: files of zeros and ones beside the ground truths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ckd_fast.errors import InputError

from .layouts import Layout
from .tables import read_names, read_text


@dataclass(frozen=True)
class Attributes:
    names: tuple[str, ...] = ()  # all of them, in the published order
    of_sequence: Mapping[str, frozenset[str]] = field(default_factory=dict)  # those of each sequence
    remark: str = ""  # why there are none, if files are missing


def read_attributes(layout: Layout, root: Path) -> Attributes:
    """Read the attribute files of a data set; empty if it has none."""
    per_sequence = bool(layout.attribute_flags)
    folder = root / (layout.attribute_flags or layout.attribute_files)
    # The flags of a file per attribute follow the list beside it, not the data set's: RGBT210 ships RGBT234's files.
    order = root / layout.attribute_order if per_sequence else folder / "SequencesName.txt"
    if folder == root or not folder.is_dir():
        return Attributes()
    if not order.is_file():
        return Attributes(remark=f"no attributes: {folder.name} is there, {order.relative_to(root)} is not")
    columns = read_text(order).replace(",", " ").split() if per_sequence else read_names(order)
    flagged = {path.stem: _flagged(path, columns, order) for path in sorted(folder.glob("*.txt")) if path != order}
    if per_sequence:
        return Attributes(tuple(columns), flagged)
    of_sequence = {
        sequence: frozenset(attribute for attribute, having in flagged.items() if sequence in having)
        for sequence in columns
    }
    return Attributes(tuple(flagged), of_sequence)


def _flagged(path: Path, columns: list[str], order: Path) -> frozenset[str]:
    """The columns for which a file has a 1."""
    flags = read_text(path).replace(",", " ").split()
    if set(flags) - {"0", "1"}:
        raise InputError(f"{path}: expected 0 or 1 per entry, got {sorted(set(flags) - {'0', '1'})[:3]}")
    if len(flags) != len(columns):
        raise InputError(f"{path}: {len(flags)} flags, but {order} has {len(columns)} names")
    return frozenset(column for column, flag in zip(columns, flags, strict=True) if flag == "1")
