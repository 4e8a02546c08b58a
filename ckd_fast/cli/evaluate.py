"""`ckd-fast eval`: score result files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ckd_fast.errors import InputError

from .parsing import add_command, add_dataset_options, chosen_dataset, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .parsing import Commands

EXIT_STRICT = 1


def add_eval(commands: Commands) -> None:
    parser = add_command(
        commands,
        "eval",
        "score result files as the benchmark's toolkit does",
        "  ckd-fast eval results/CKD --dataset lasher --root LasHeR\n"
        "  ckd-fast eval results/* --dataset rgbt234 --root RGBT234 --html report.html --json scores.json\n"
        "  ckd-fast eval runs/clean runs/blur-3 --dataset folder --root sequences/ --against clean\n"
        "  ckd-fast eval results/CKD --dataset gtot --root GTOT --strict-quirk open-corners --strict",
    )
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="RESULTS", help="folder of SEQUENCE.txt files, named after its tracker"
    )
    add_dataset_options(parser)
    reading = parser.add_argument_group("reading")
    reading.add_argument(
        "--boxes", choices=("ltwh", "ltrb", "centre"), default="ltwh",
        help="what four numbers mean: x,y,w,h (default), x1,y1,x2,y2 or cx,cy,w,h; eight are always corners",
    )  # fmt: skip
    reading.add_argument(
        "--strict-quirk", action="append", default=[], metavar="NAME",
        help="score strictly instead of with this quirk of the toolkits, or all (repeatable; see docs/evaluation.md)",
    )  # fmt: skip
    reading.add_argument(
        "--missing", choices=("zero", "leave-out"), default="zero",
        help="a sequence without a usable result counts as 0 (default) or is left out of the mean",
    )  # fmt: skip
    reading.add_argument("--strict", action="store_true", help="exit with code 1 if any result has a problem")
    output = parser.add_argument_group("output")
    output.add_argument("--html", type=Path, metavar="FILE", help="report in one file: ranking, plots, every sequence")
    output.add_argument("--json", type=Path, metavar="FILE", help="all scores, as fractions")
    output.add_argument("--csv", type=Path, metavar="FILE", help="all scores as a table, as fractions")
    output.add_argument("--attributes", action="store_true", help="also print the scores per attribute")
    output.add_argument("--against", metavar="TRACKER", help="also print how each tracker differs from this one")
    output.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run_eval)


def check_outputs(outputs: Sequence[Path | None], folders: Sequence[Path]) -> None:
    """Raise if an output is a folder, would replace another output, or would be taken for a result."""
    given = [path for path in outputs if path is not None]
    for number, path in enumerate(given):
        if path.resolve() in [other.resolve() for other in given[:number]]:
            raise InputError(f"{path}: named for two outputs; choose two files")
        if path.is_dir():
            raise InputError(f"{path}: a folder; expected a file to write")
        if path.resolve().parent in {folder.resolve() for folder in folders} and path.suffix == ".txt":
            raise InputError(f"{path}: would be taken for a result; choose another name or folder")


def run_eval(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ckd_fast.evaluation import ScoringOptions, evaluate
    from ckd_fast.evaluation.report import html_report
    from ckd_fast.evaluation.results import tracker_names
    from ckd_fast.evaluation.scores import summarise
    from ckd_fast.evaluation.tables import attribute_table, loss_table, text_table, to_csv, to_json
    from ckd_fast.files import write_atomically

    scoring = ScoringOptions(tuple(options.strict_quirk), options.boxes, options.missing)
    check_outputs((options.html, options.json, options.csv), options.results)
    names = sorted(tracker_names(options.results))
    if options.against and options.against not in names:
        raise InputError(f"--against {options.against!r}: expected one of the trackers {', '.join(names)}")
    dataset = chosen_dataset(options)
    with tqdm(total=len(options.results), unit="tracker", disable=True if options.quiet else None) as bar:
        evaluation = evaluate(dataset, options.results, scoring, lambda _name: bar.update())
    written = []
    for path, render in ((options.html, html_report), (options.json, to_json), (options.csv, to_csv)):
        if path is not None:
            write_atomically(path, render(evaluation))
            written.append(path)
    say(f"{dataset.layout.title}, {len(dataset.sequences)} sequences, in percent")
    say(text_table(evaluation))
    if options.attributes:
        say(attribute_table(evaluation))
    if options.against:
        say(loss_table(evaluation, options.against))
    for line in summarise(evaluation.problems):
        sys.stderr.write(f"ckd-fast: {line}\n")
    for path in written:
        say(f"written: {path}")
    if options.strict and (evaluation.problems or dataset.remarks):
        count = len(evaluation.problems) + len(dataset.remarks)
        sys.stderr.write(f"ckd-fast: exit code 1, because --strict was given and there are {count} problems\n")
        return EXIT_STRICT
    return 0
