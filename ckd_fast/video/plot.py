"""Score, and overlap with the ground truth where known, over time. Needs the extra `plot` (matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckd_fast.errors import EngineError, OutputError

from .writers import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def require_matplotlib() -> None:
    """Raise, with what to do, where matplotlib is missing."""
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError as error:
        raise EngineError("plots need matplotlib: pip install 'ckd_fast[plot]'") from error


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, without a window and without pyplot's global state."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write it."""
    try:
        figure.savefig(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


def plot_track(
    path: Path, scores: Sequence[Sequence[float | None]], threshold: float, overlaps: Sequence[float | None] | None
) -> None:
    """Write the plot.

    Args:
        path: of the image.
        scores: per target, per frame; None where there is none.
        threshold: below it a result counts as lost.
        overlaps: of the first target with the ground truth per frame, None where there is no truth.
    """
    figure = new_figure(9, 3.6 if overlaps is None else 5.4)
    axes = figure.subplots(1 if overlaps is None else 2, 1, sharex=True, squeeze=False)[:, 0]
    top = axes[0]
    for number, series in enumerate(scores, 1):
        label = "score" if len(scores) == 1 else f"target {number}"
        colour = "#{:02x}{:02x}{:02x}".format(*COLOURS[(number - 1) % len(COLOURS)])  # as in the video
        values = [float("nan") if s is None else s for s in series]
        top.plot(values, linewidth=1.4, marker=".", markersize=2, label=label, color=colour)
    top.axhline(threshold, color="0.5", linewidth=1, linestyle="--", label=f"lost below {threshold:g}")
    top.set(ylim=(0, 1.02), ylabel="score")
    top.legend(loc="upper right", fontsize=8)
    if overlaps is not None:
        bottom = axes[1]
        known = [value for value in overlaps[1:] if value is not None]
        label = f"IoU with ground truth, mean {sum(known) / max(len(known), 1):.2f}"
        drawn = [float("nan") if value is None else value for value in overlaps]
        bottom.plot(drawn, linewidth=1.4, color="tab:green", label=label)
        bottom.set(ylim=(0, 1.02), ylabel="IoU")
        bottom.legend(loc="upper right", fontsize=8)
    axes[-1].set_xlabel("frame")
    save_figure(figure, path)
