"""Draw training runs: losses, validation, and sweeps over one setting.

    python experiments/curves.py runs/ckd --out figures/
    python experiments/curves.py runs/mask-* runs/style-* --out figures/

Writes losses.png, validation.png, curves.json and one figure per sweep. A sweep is three or more runs that differ in
one number only, such as a mask ratio or a loss weight. Only runs with the same validation pairs and step count are
compared. Needs the extra `plot`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ckd_fast.errors import CkdFastError, InputError
from ckd_fast.files import make_folder, refuse_overwrite, write_atomically
from ckd_fast.plotting import new_figure, require_matplotlib, save_figure
from ckd_fast.training.logs import LOG

CONFIG = "config.json"
TABLE = "curves.json"
# These settings do not make a run another experiment: logging, saving, and repetition with another seed.
IGNORED = re.compile(r"upkeep\.(?!validation_pairs$)|workers$|loss_engine$|seed$")
# These change the validation pairs: scores under different values cannot be compared.
VALIDATION = re.compile(
    r"sources|sampling|upkeep\.validation_pairs|model\.(template|search)_(size|factor)|model\.patch_size"
)
# These change the number of steps. A sweep over any other setting needs runs of equal length.
LENGTH = re.compile(r"stages\[\d+\]\.(pairs|epochs|batch|accumulate)$")
SMALLEST_SWEEP = 3
MOST_COLUMNS = 8  # settings shown in the terminal
PANELS_PER_ROW = 3
LOSSES = {
    "loss": "all losses", "focal": "focal", "giou": "GIoU", "l1": "L1", "style": "style (SD)",
    "content": "content (CD)", "teacher_rgb": "teacher, RGB", "teacher_tir": "teacher, thermal",
    "gradient_norm": "gradient norm",
}  # fmt: skip
Setting = str | int | float | bool | None


@dataclass
class Curve:
    """A quantity over the optimiser's steps."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    name: str  # of its folder
    settings: Mapping[str, Setting]  # by dotted path ("stages[0].hidden")
    curves: Mapping[str, Curve]  # losses, rates and speeds by name
    validation: Curve  # mean IoU on rendered pairs
    unreadable_lines: int  # of the log; a killed run leaves one

    @property
    def last(self) -> float:
        """The last validation; NaN without one."""
        return self.validation.values[-1] if self.validation.values else math.nan

    @property
    def best(self) -> float:
        """The best validation; NaN without one."""
        return max(self.validation.values, default=math.nan)


@dataclass(frozen=True)
class Sweep:
    """Runs that differ in one number only."""

    setting: str  # dotted path of the number
    values: tuple[float, ...]  # the number, ascending
    runs: tuple[tuple[Run, ...], ...]  # with each value; several if they differ in their seeds

    def means(self) -> tuple[float, ...]:
        """Mean last validation at each value."""
        return tuple(sum(run.last for run in repeats) / len(repeats) for repeats in self.runs)

    def file(self, number: int) -> str:
        """Name of its figure."""
        return f"sweep-{number}-{re.sub(r'[^A-Za-z0-9]+', '-', self.setting).strip('-')}.png"


def read_run(folder: Path) -> Run:
    """Read a folder that `ckd-fast train` wrote."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        lines = (folder / LOG).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: not a run of `ckd-fast train`; expected {CONFIG} and {LOG} ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"{folder / CONFIG}: expected a JSON object of settings, as `ckd-fast train` writes it")
    curves: dict[tuple[str, str], Curve] = {}
    unreadable = 0
    for line in lines:
        try:
            entry = json.loads(line)
            kind, step = str(entry.pop("kind")), int(entry.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            unreadable += 1
            continue
        for name, value in entry.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                curve = curves.setdefault((kind, name), Curve())
                curve.steps.append(step)
                curve.values.append(float(value))
    if ("step", "loss") not in curves:
        raise InputError(f"{folder / LOG}: no losses; the run ended before it logged any")
    logged = {name: curve for (kind, name), curve in curves.items() if kind == "step"}
    validation = curves.get(("validation", "mean_iou"), Curve())
    return Run(folder.resolve().name, flat(config), logged, validation, unreadable)


def flat(values: object, path: str = "") -> dict[str, Setting]:
    """Nested JSON by dotted path."""
    if isinstance(values, dict):
        parts = [flat(value, f"{path}.{name}" if path else str(name)) for name, value in values.items()]
    elif isinstance(values, list):
        parts = [flat(value, f"{path}[{index}]") for index, value in enumerate(values)]
    else:
        return {path: values}  # type: ignore[dict-item]  # JSON has no other types
    return {name: value for part in parts for name, value in part.items()}


def differing(runs: Sequence[Run]) -> list[str]:
    """Settings that are not equal in all runs, without those in `IGNORED`."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [n for n in names if not IGNORED.match(n) and len({_typed(run.settings.get(n)) for run in runs}) > 1]


def sweeps(runs: Sequence[Run]) -> list[Sweep]:
    names = differing(runs)
    found = []
    for name in names:
        if VALIDATION.match(name):
            continue
        groups: dict[tuple[Any, ...], dict[float, list[Run]]] = {}  # runs that are equal in everything else
        for run in runs:
            value = run.settings.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(run.last):
                continue
            others = [_typed(run.settings.get(other)) for other in names if other != name]
            if not LENGTH.match(name):
                others.append(_typed(run.validation.steps[-1]))
            groups.setdefault(tuple(others), {}).setdefault(float(value), []).append(run)
        for by_value in groups.values():
            if len(by_value) >= SMALLEST_SWEEP:
                values = sorted(by_value)
                found.append(Sweep(name, tuple(values), tuple(tuple(by_value[value]) for value in values)))
    return found


def _typed(value: Setting) -> tuple[str, Setting]:
    """Tells 1 from true, and null from a missing setting's text."""
    return type(value).__name__ if not isinstance(value, int | float) or isinstance(value, bool) else "number", value


def draw_losses(runs: Sequence[Run], path: Path) -> None:
    """One panel per loss, one line per run; logarithmic where all values are positive."""
    shown = [name for name in LOSSES if any(any(run.curves[name].values) for run in runs if name in run.curves)]
    rows = -(-len(shown) // PANELS_PER_ROW)
    figure = new_figure(12, 2.9 * rows + 0.6)
    grid = figure.subplots(rows, PANELS_PER_ROW, squeeze=False)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for name, axes in zip(shown, grid.flat, strict=False):
        values: list[float] = []
        for number, run in enumerate(runs):
            curve = run.curves.get(name)
            if curve is not None and any(curve.values):  # a stage without teachers logs zeros
                axes.plot(curve.steps, curve.values, color=_colour(number), linewidth=1.2, label=run.name)
                values += curve.values
        if min(values) > 0:
            axes.set_yscale("log")
        axes.set_title(LOSSES[name], fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.grid(alpha=0.25, linewidth=0.6)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(runs), 6), fontsize=8)
    save_figure(figure, path)


def draw_validation(runs: Sequence[Run], path: Path) -> None:
    """Mean IoU on rendered pairs, one line per run."""
    figure = new_figure(9, 5)
    axes = figure.subplots()
    for number, run in enumerate(runs):
        if run.validation.values:
            axes.plot(
                run.validation.steps, run.validation.values, color=_colour(number), linewidth=1.3, marker=".",
                label=f"{run.name}: {run.last:.3f}",
            )  # fmt: skip
    axes.set(xlabel="step", ylabel="mean IoU on rendered pairs")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def draw_sweep(sweep: Sweep, path: Path) -> None:
    """Last validation over the setting: a point per run, a line through the means."""
    figure = new_figure(6, 4)
    axes = figure.subplots()
    axes.plot(sweep.values, sweep.means(), color=_colour(0), linewidth=1.4)
    for value, runs in zip(sweep.values, sweep.runs, strict=True):
        axes.plot([value] * len(runs), [run.last for run in runs], "o", color=_colour(0), markersize=5)
        axes.annotate(
            ", ".join(run.name for run in runs), (value, max(run.last for run in runs)), fontsize=7, xytext=(0, 6),
            textcoords="offset points", ha="center",
        )  # fmt: skip
    if sweep.values[0] > 0 and sweep.values[-1] / sweep.values[0] >= 50:
        axes.set_xscale("log")
    axes.margins(x=0.12, y=0.2)
    axes.set(xlabel=sweep.setting, ylabel="mean IoU on rendered pairs")
    axes.grid(alpha=0.25, linewidth=0.6)
    save_figure(figure, path)


def _colour(number: int) -> object:
    import matplotlib as mpl

    return mpl.colormaps["tab20"](number % 20)


def markdown(runs: Sequence[Run], settings: Sequence[str]) -> str:
    """Steps, validation and differing settings of every run."""
    shown = settings[:MOST_COLUMNS]
    rows = [["run", "steps", "validation", "best", *shown], ["---"] * (4 + len(shown))]
    for run in runs:
        values = (str(run.settings.get(name, "")) for name in shown)
        rows.append([run.name, str(max(run.curves["loss"].steps)), f"{run.last:.3f}", f"{run.best:.3f}", *values])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if len(settings) > MOST_COLUMNS:
        lines.append(f"{len(settings) - MOST_COLUMNS} more settings differ: see {TABLE}")
    return "\n".join(lines)


def as_json(runs: Sequence[Run], settings: Sequence[str], found: Sequence[Sweep]) -> str:
    """Everything but the curves."""

    def number(value: float) -> float | None:
        return None if math.isnan(value) else value  # JSON has no NaN

    table = {
        run.name: {"validation": number(run.last), "best": number(run.best)}
        | {"settings": {name: run.settings.get(name) for name in settings}}
        for run in runs
    }
    series = [
        {"setting": sweep.setting, "values": sweep.values, "validation": sweep.means()}
        | {"runs": [[run.name for run in repeats] for repeats in sweep.runs]}
        for sweep in found
    ]
    return json.dumps({"runs": table, "sweeps": series}, indent=1) + "\n"


def draw(folders: Sequence[Path], out: Path, *, force: bool) -> None:
    """Read the runs, write every figure and the table."""
    require_matplotlib()
    runs = [read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name}: several runs have this name; rename one to tell them apart in the figures")
    found = sweeps(runs)
    files = ["losses.png", *(["validation.png"] if any(run.validation.values for run in runs) else [])]
    files += [sweep.file(number) for number, sweep in enumerate(found, 1)]
    old_sweeps = set(out.glob("sweep-*.png"))
    refuse_overwrite(sorted({out / name for name in (*files, TABLE)} | old_sweeps), force=force)
    make_folder(out)
    for path in old_sweeps:
        path.unlink()
    draw_losses(runs, out / "losses.png")
    if "validation.png" in files:
        draw_validation(runs, out / "validation.png")
    for number, sweep in enumerate(found, 1):
        draw_sweep(sweep, out / sweep.file(number))
    settings = differing(runs)
    write_atomically(out / TABLE, as_json(runs, settings, found))
    print(markdown(runs, settings))
    for run in runs:
        if run.unreadable_lines:
            print(f"{run.name}: unreadable lines in {LOG}: {run.unreadable_lines}", file=sys.stderr)
        if not run.validation.values:
            print(f"{run.name}: never validated; only its losses are drawn", file=sys.stderr)
    print(f"written to {out}: {', '.join(files)}, {TABLE}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder that `ckd-fast train` wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the figures")
    parser.add_argument("--force", action="store_true", help="overwrite existing figures")
    options = parser.parse_args(arguments)
    try:
        draw(options.runs, options.out, force=options.force)
    except CkdFastError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
