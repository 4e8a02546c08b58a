"""Plot the scores, and the overlap with the ground truth, over time. Needs the extra `plot` (matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckd_fast.plotting import new_figure, save_figure

from .writers import COLOURS

NAN = float("nan")


def plot_track(
    path: Path, scores: Sequence[Sequence[float | None]], threshold: float, overlaps: Sequence[float | None] | None
) -> None:
    """Write the plot.

    Args:
        path: of the image.
        scores: per target, per frame; None where nothing was tracked.
        threshold: scores below it count as lost.
        overlaps: IoU of the first target with the ground truth per frame, None where the truth is unknown; None for no
            second plot.
    """
    figure = new_figure(9, 3.6 if overlaps is None else 5.4)
    axes = figure.subplots(1 if overlaps is None else 2, 1, sharex=True, squeeze=False)[:, 0]
    top = axes[0]
    for number, series in enumerate(scores, 1):
        label = "score" if len(scores) == 1 else f"target {number}"
        colour = "#{:02x}{:02x}{:02x}".format(*COLOURS[(number - 1) % len(COLOURS)])  # as in the video
        values = [NAN if score is None else score for score in series]
        top.plot(values, linewidth=1.4, marker=".", markersize=2, label=label, color=colour)
    top.axhline(threshold, color="0.5", linewidth=1, linestyle="--", label=f"lost below {threshold:g}")
    top.set(ylim=(0, 1.02), ylabel="score")
    top.legend(loc="upper right", fontsize=8)
    if overlaps is not None:
        bottom = axes[1]
        known = [value for value in overlaps[1:] if value is not None]
        label = f"IoU with ground truth, mean {sum(known) / max(len(known), 1):.2f}"
        drawn = [NAN if value is None else value for value in overlaps]
        bottom.plot(drawn, linewidth=1.4, color="tab:green", label=label)
        bottom.set(ylim=(0, 1.02), ylabel="IoU")
        bottom.legend(loc="upper right", fontsize=8)
    axes[-1].set_xlabel("frame")
    save_figure(figure, path)
