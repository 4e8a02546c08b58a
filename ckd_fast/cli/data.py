"""`ckd-fast data`: check a data set."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ckd_fast.errors import InputError

from .parsing import add_command

if TYPE_CHECKING:
    from ckd_fast.datasets.checking import DatasetCheck

    from .parsing import Commands

EXIT_FINDINGS = 1
LINES_SHOWN = 40


def add_data(commands: Commands) -> None:
    from ckd_fast.datasets.layouts import DATASETS

    parser = add_command(commands, "data", "check a data set", "  ckd-fast data check LasHeR --dataset lasher")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    check = add_command(
        verbs,
        "check",
        "decode every image and read every ground truth; list what is missing, damaged or does not fit",
        "  ckd-fast data check GTOT\n  ckd-fast data check LasHeR --dataset lasher-train --json report.json",
    )
    check.add_argument("root", type=Path, metavar="ROOT", help="folder of the data set, or of your own sequences")
    check.add_argument("--dataset", choices=DATASETS, metavar="NAME", help=f"{', '.join(DATASETS)} (default: detected)")
    check.add_argument("--json", type=Path, metavar="FILE", help="write all findings to a file")
    check.add_argument("--quiet", action="store_true", help="no progress bar")
    check.set_defaults(run=run_data_check)


def run_data_check(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ckd_fast.datasets import open_dataset
    from ckd_fast.datasets.checking import check_dataset, detect
    from ckd_fast.files import write_atomically

    root: Path = options.root
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    dataset = detect(root) if options.dataset is None else open_dataset(options.dataset, root)
    with tqdm(total=len(dataset.sequences), unit="sequence", disable=True if options.quiet else None) as bar:
        found = check_dataset(dataset, on_sequence=lambda _check: bar.update())
    show(found, dataset.layout.title)
    if options.json:
        content = dataclasses.asdict(found) | {"root": str(found.root)}
        write_atomically(options.json, json.dumps(content, indent=1) + "\n")
    return EXIT_FINDINGS if found.findings or found.remarks else 0


def show(found: DatasetCheck, title: str) -> None:
    """Print a summary on standard output, and the faults on standard error."""
    checks = found.sequences
    frames, boxes = sum(check.frames for check in checks), sum(check.boxes for check in checks)
    empty = sum(check.empty_boxes for check in checks)
    print(f"{title}: {len(checks)} sequences, {frames} frame pairs, {boxes} boxes ({empty} without area)")
    sizes = sorted(found.sizes.items(), key=lambda item: -item[1])
    if sizes:
        print("visible frames: " + ", ".join(f"{w}x{h} in {count} sequences" for (w, h), count in sizes[:8]))
    differ = sum(
        check.visible_size != check.infrared_size for check in checks if check.visible_size and check.infrared_size
    )
    if differ:
        print(f"{differ} sequences have thermal frames of another size than the visible ones")
    lines = [*found.remarks, *(f"{finding.sequence}: {finding.kind}: {finding.text}" for finding in found.findings)]
    for line in lines[:LINES_SHOWN]:
        sys.stderr.write(f"ckd-fast: {line}\n")
    if len(lines) > LINES_SHOWN:
        sys.stderr.write(f"ckd-fast: and {len(lines) - LINES_SHOWN} more; --json FILE lists all\n")
    print("no findings" if not lines else f"{len(lines)} findings")
