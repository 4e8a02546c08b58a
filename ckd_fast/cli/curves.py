"""`ckd-fast curves`: tables and figures of training runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ckd_fast.errors import InputError

from .parsing import add_command

if TYPE_CHECKING:
    from ckd_fast.training.curves import RunRecord, Sweep

    from .parsing import Commands

TABLE = "curves.json"
MOST_COLUMNS = 8  # of settings in the terminal


def add_curves(commands: Commands) -> None:
    """Declare the subcommand."""
    parser = add_command(
        commands,
        "curves",
        "draw training runs: losses, validation, and sweeps over the settings that they differ in",
        "  ckd-fast curves runs/ckd --out figures/\n"
        "  ckd-fast curves runs/mask-* runs/style-* --out figures/   # also the validation against each setting",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder that `ckd-fast train` wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the figures")
    parser.add_argument("--force", action="store_true", help="overwrite figures that are there")
    parser.set_defaults(run=run_curves)


def run_curves(options: argparse.Namespace) -> int:
    """`ckd-fast curves`."""
    from ckd_fast.files import make_folder, refuse_overwrite, write_atomically
    from ckd_fast.plotting import require_matplotlib
    from ckd_fast.training.curves import differing, read_run, sweeps
    from ckd_fast.training.figures import draw_losses, draw_sweep, draw_validation, sweep_file

    require_matplotlib()
    runs = [read_run(path) for path in options.runs]
    names = [run.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{twice[0]}: several runs have this name, and figures could not tell them apart: rename one")
    series = sweeps(runs)
    files = ["losses.png", *(["validation.png"] if any(run.validation.values for run in runs) else [])]
    files += [sweep_file(number, sweep) for number, sweep in enumerate(series, 1)]
    out: Path = options.out
    old_sweeps = sorted(out.glob("sweep-*.png"))
    refuse_overwrite(dict.fromkeys((*(out / name for name in (*files, TABLE)), *old_sweeps)), force=options.force)
    make_folder(out)
    for old in old_sweeps:  # of other runs; without --force there is none
        old.unlink()
    draw_losses(runs, out / "losses.png")
    if "validation.png" in files:
        draw_validation(runs, out / "validation.png")
    for number, sweep in enumerate(series, 1):
        draw_sweep(sweep, out / sweep_file(number, sweep))
    settings = differing(runs)
    write_atomically(out / TABLE, json.dumps(_content(runs, settings, series), indent=1) + "\n")
    print(_table(runs, settings))
    for run in runs:
        if run.torn:
            sys.stderr.write(f"ckd-fast: {run.name}: lines of the log that could not be read: {run.torn}\n")
        if not run.validation.values:
            sys.stderr.write(f"ckd-fast: {run.name}: never validated; it is in the losses alone\n")
    print(f"{', '.join(files)} and {TABLE} in {out}")
    return 0


def _table(runs: list[RunRecord], settings: list[str]) -> str:
    """Runs in Markdown: steps, validation, and the settings that differ."""
    more = settings[MOST_COLUMNS:]
    settings = settings[:MOST_COLUMNS]
    head = ["run", "steps", "validation", "best", *settings]
    rows = [
        [run.name, str(max(run.curves["loss"].steps) if "loss" in run.curves else 0), f"{run.last:.3f}",
         f"{run.best:.3f}", *(str(run.settings.get(name, "")) for name in settings)]
        for run in runs
    ]  # fmt: skip
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    if more:
        lines.append(f"{len(more)} more settings differ: {TABLE} has them")
    return "\n".join(lines)


def _content(runs: list[RunRecord], settings: list[str], series: list[Sweep]) -> dict[str, object]:
    def number(value: float) -> float | None:
        return None if value != value else value  # noqa: PLR0124  # JSON has no NaN

    return {
        "runs": {
            run.name: {
                "validation": number(run.last),
                "best": number(run.best),
                "settings": {name: run.settings.get(name) for name in settings},
            }
            for run in runs
        },
        "sweeps": [
            {
                "setting": sweep.setting,
                "values": sweep.values,
                "validation": sweep.means(),
                "runs": [[run.name for run in some] for some in sweep.runs],
            }
            for sweep in series
        ],
    }
