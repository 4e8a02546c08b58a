"""Figures of what happened inside one frame. Need the extra `plot` (matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ckd_fast.plotting import new_figure, save_figure

from .explain import Array, Explanation, activity, alive, instance_norm, similarity, style_gap
from .tsne import tsne

MODALITIES = ("visible", "thermal")
COLOURS = ("#0072b2", "#d55e00")
VEIL, VEILED = 0.8, 235  # a dropped token shows through a light veil, so that it is seen on black too
MOST_BLOCKS = 6


def _box(axes: Any, of: Explanation) -> None:  # noqa: ANN401  # matplotlib's axes
    from matplotlib.patches import Rectangle

    x, y, w, h = of.box_in_crop
    axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor="#ffd21f", linewidth=1.6))


def _picture(axes: Any, image: object, title: str, **options: object) -> Any:  # noqa: ANN401  # matplotlib's
    shown = axes.imshow(image, **options)
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    return shown


def draw_tokens(of: Explanation, path: Path) -> None:
    """Kept tokens stage by stage over the search crops; the score map at the end."""
    cell = of.crops.shape[1] // of.grid
    figure = new_figure(2.3 * (len(of.stages) + 2), 4.9)
    axes = figure.subplots(2, len(of.stages) + 2, squeeze=False)
    for row, name in enumerate(MODALITIES):
        _picture(axes[row][0], of.crops[row], f"{name}, {of.grid**2} tokens")
        _box(axes[row][0], of)
        for column, stage in enumerate(of.stages, 1):
            veil = np.where(stage.kept[row], 0.0, VEIL).reshape(of.grid, of.grid)
            veil = np.kron(veil, np.ones((cell, cell)))[..., None]
            shown = of.crops[row] * (1 - veil) + VEILED * veil
            title = f"block {stage.block}: {int(stage.kept[row].sum())} of {stage.before} kept"
            _picture(axes[row][column], shown.astype(np.uint8), title)
        last = axes[row][-1]
        _picture(last, of.crops[row], f"score {of.score:.2f}")
        side = of.crops.shape[1]
        last.imshow(of.score_map, cmap="inferno", alpha=0.6, extent=(0, side, side, 0), vmin=0)
        _box(last, of)
    save_figure(figure, path)


def similarities(of: Explanation) -> list[float]:
    """Mean cosine of the modalities' tokens, block by block, over the tokens that are left."""
    found = []
    for tokens in of.tokens:
        left = alive(tokens)
        found.append(float(similarity(tokens[0, left], tokens[1, left]).mean()))
    return found


def draw_features(of: Explanation, path: Path, others: Mapping[str, Explanation] | None = None) -> None:
    """Activity of both modalities and their similarity, map by map, and the similarity's mean over the blocks.

    Args:
        of: the frame.
        path: of the image.
        others: the same frame through other weights, by name, for the curve.
    """
    depth = len(of.tokens)
    blocks = sorted({round(value) for value in np.linspace(0, depth - 1, min(depth, MOST_BLOCKS))})
    figure = new_figure(2.1 * len(blocks) + 3.6, 6.4)
    grid = figure.add_gridspec(3, len(blocks) + 1, width_ratios=[1.0] * len(blocks) + [1.8])
    shape = (of.grid, of.grid)
    for column, block in enumerate(blocks):
        tokens = of.tokens[block]
        strength = activity(tokens)
        for row, name in enumerate(MODALITIES):
            axes = figure.add_subplot(grid[row, column])
            _picture(axes, strength[row].reshape(shape), f"{name}, block {block}", cmap="viridis")
        axes = figure.add_subplot(grid[2, column])
        cosine = similarity(tokens[0], tokens[1]).reshape(shape)
        shown = _picture(axes, cosine, f"similarity, block {block}", cmap="coolwarm", vmin=-1, vmax=1)
        if column == len(blocks) - 1:
            figure.colorbar(shown, ax=axes, shrink=0.8)
    curve = figure.add_subplot(grid[:, -1])
    for name, one in {"these weights": of, **(others or {})}.items():
        curve.plot(similarities(one), marker=".", label=name)
    curve.set(xlabel="block", ylabel="mean cosine of visible and thermal tokens", ylim=(-1.02, 1.02))
    curve.grid(visible=True, alpha=0.3)
    curve.legend(fontsize=8)
    save_figure(figure, path)


def draw_gap(of: Explanation, path: Path, block: int) -> None:
    """t-SNE of both modalities' tokens after a block, as they are and after instance normalisation."""
    tokens = of.tokens[block][:, alive(of.tokens[block])]
    figure = new_figure(9.4, 4.6)
    panels = figure.subplots(1, 2)
    for axes, title, values in zip(
        panels, ("as they are", "after instance normalisation"), (tokens, instance_norm(tokens)), strict=True
    ):
        _map(axes, title, values)
    figure.suptitle(f"search tokens after block {block}", fontsize=10)
    save_figure(figure, path)


def _map(axes: Any, title: str, tokens: Array) -> None:  # noqa: ANN401  # matplotlib's axes
    count = tokens.shape[1]
    points = tsne(tokens.reshape(2 * count, -1), perplexity=min(30.0, (2 * count - 1) / 4)).points
    for modality, (name, colour) in enumerate(zip(MODALITIES, COLOURS, strict=True)):
        mine = points[modality * count : (modality + 1) * count]
        axes.scatter(mine[:, 0], mine[:, 1], s=14, color=colour, alpha=0.75, label=name, linewidths=0)
    axes.set_title(f"{title} (style gap {style_gap(tokens):.3g})", fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(fontsize=8)
