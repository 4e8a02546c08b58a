"""Figures of training runs. Need the extra `plot` (matplotlib)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ckd_fast.plotting import new_figure, save_figure

from .curves import RunRecord, Sweep

TERMS = {
    "loss": "all losses",
    "focal": "focal",
    "giou": "GIoU",
    "l1": "L1",
    "style": "style (SD)",
    "content": "content (CD)",
    "teacher_rgb": "teacher, RGB",
    "teacher_tir": "teacher, thermal",
    "gradient_norm": "gradient norm",
}
COLUMNS = 3


def draw_losses(runs: Sequence[RunRecord], path: Path) -> None:
    """Every term over the steps; one line per run, on a logarithmic scale where all of it is positive."""
    shown = [name for name in TERMS if any(any(run.curves[name].values) for run in runs if name in run.curves)]
    rows = -(-len(shown) // COLUMNS)
    figure = new_figure(12, 2.9 * rows + 0.6)
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
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
        axes.set_title(TERMS[name], fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.grid(alpha=0.25, linewidth=0.6)
    _legend(figure, grid[0, 0], len(runs))
    save_figure(figure, path)


def draw_validation(runs: Sequence[RunRecord], path: Path) -> None:
    """Mean IoU on rendered pairs over the steps."""
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
    """The last validation against the setting: every run a point, their mean a line."""
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


def sweep_file(number: int, sweep: Sweep) -> str:
    """A name for the figure of a sweep."""
    return f"sweep-{number}-{re.sub(r'[^A-Za-z0-9]+', '-', sweep.setting).strip('-')}.png"


def _colour(number: int) -> object:
    import matplotlib as mpl

    return mpl.colormaps["tab20"](number % 20)


def _legend(figure, axes, count: int) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(count, 6), fontsize=8)
