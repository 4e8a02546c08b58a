"""Draw what the network does in one frame.

    python experiments/explain.py visible/ infrared/ --init 120,80,40,90 --frame 30 --weights ckd.safetensors --out why/
    python experiments/explain.py visible/ infrared/ --init 120,80,40,90 --weights a.pt --baseline b.pt --out why/

Tracks up to the frame, then writes tokens.png (the tokens kept by each elimination, and the score map), features.png
(feature maps of both modalities, their similarity, and its mean per block), gap.png (t-SNE of both modalities' tokens)
and explain.json (the numbers). Everything comes from the engine's own steps. Needs the extra `plot`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray
from tsne import tsne

from ckd_fast.cli.parsing import add_model_options, box, not_negative, positive
from ckd_fast.engines import Engine, Search
from ckd_fast.errors import CkdFastError, EngineError, InputError
from ckd_fast.files import make_folder, refuse_overwrite, write_atomically
from ckd_fast.frames import RawPair, check_pair, first_pair, register
from ckd_fast.plotting import new_figure, require_matplotlib, save_figure
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.preprocess import PIXEL_MEAN, PIXEL_STD, crop
from ckd_fast.tracker import Tracker
from ckd_fast.types import Box
from ckd_fast.video import FolderPairs

Array = NDArray[np.float32]
FILES = ("tokens.png", "features.png", "gap.png", "explain.json")
NORM_EPS = 1e-5  # as in the content loss
MODALITIES = ("visible", "thermal")
COLOURS = ("#0072b2", "#d55e00")
VEIL, VEIL_LEVEL = 0.8, 235  # dropped tokens are covered by a light veil, which also shows on black
MOST_BLOCKS = 6  # drawn in features.png


@dataclass(frozen=True)
class Elimination:
    block: int  # the block it happens in
    kept: NDArray[np.bool_]  # [2, L], visible and thermal, over the search grid in raster order; equal rows for "mce"
    before: int  # number of tokens before it


@dataclass(frozen=True)
class Explanation:
    """What happened in one frame."""

    crops: NDArray[np.uint8]  # search crops [2, S, S, 3], visible and thermal
    eliminations: tuple[Elimination, ...]  # in order
    tokens: tuple[Array, ...]  # search tokens after every block, [2, L, C] in raster order, NaN where dropped
    score_map: Array  # [g, g]
    box: Box  # result in the frame
    box_in_crop: Box  # result in pixels of the crop
    score: float  # of the result

    @property
    def grid(self) -> int:
        """Side of the search grid in tokens."""
        return int(self.score_map.shape[0])


def explain_frame(engine: Engine, first: RawPair, target: Box, pair: RawPair, around: Box) -> Explanation:
    """Search one frame and keep what the network computes.

    Args:
        engine: an engine with observable steps.
        first: frames of the initialisation.
        target: target box in `first`.
        pair: frames to explain; both modalities.
        around: target box in the frame before `pair`.
    """
    visible = register(pair).rgb
    if visible is None or pair.tir is None:
        raise InputError("explaining a frame needs both modalities")
    config = engine.config
    steps: dict[str, Any] = {}

    def keep(name: str, value: Any) -> None:  # a tensor
        steps[name] = value.detach().float().cpu().numpy()

    search = Search(engine.make_target(first, target), around, config.search_factor)
    (result,) = engine.start([search], pair, keep).result()
    needed = ["crop", "head.score", *(f"block{block}.mlp" for block in range(config.depth))]
    needed += [f"block{block}.eliminate" for block in range(config.depth) if config.eliminates_at(block)]
    hidden = [name for name in needed if name not in steps]
    if hidden:
        raise EngineError(f"engine {engine} does not show its step {hidden[0]}: use the engine 'reference'")
    pixels = steps["crop"][:, 0].transpose(0, 2, 3, 1) * np.array(PIXEL_STD) + np.array(PIXEL_MEAN)
    side = config.search_size
    scale = crop(visible, around, config.search_factor, side).resize_factor
    centre = around[0] + around[2] / 2, around[1] + around[3] / 2
    x, y, w, h = result.box
    eliminations, tokens = _tokens_in_raster_order(config, steps)
    return Explanation(
        crops=np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8),
        eliminations=tuple(eliminations),
        tokens=tuple(tokens),
        score_map=steps["head.score"].reshape(steps["head.score"].shape[-2:]),
        box=result.box,
        box_in_crop=((x - centre[0]) * scale + side / 2, (y - centre[1]) * scale + side / 2, w * scale, h * scale),
        score=result.score,
    )


def _tokens_in_raster_order(config: ModelConfig, steps: Mapping[str, Any]) -> tuple[list[Elimination], list[Array]]:
    length = config.search_tokens
    positions = np.tile(np.arange(length), (2, 1))  # [2, tokens], raster position of every token that is left
    eliminations: list[Elimination] = []
    tokens: list[Array] = []
    for block in range(config.depth):
        if config.eliminates_at(block):
            before = positions.shape[1]
            positions = steps[f"block{block}.eliminate"][:, 0].astype(np.int64)
            kept = np.zeros((2, length), bool)
            np.put_along_axis(kept, positions, values=True, axis=1)
            eliminations.append(Elimination(block, kept, before))
        left = steps[f"block{block}.mlp"][:, 0, config.template_tokens :]
        raster = np.full((2, length, left.shape[-1]), np.nan, np.float32)
        for modality in range(2):
            raster[modality, positions[modality]] = left[modality]
        tokens.append(raster)
    return eliminations, tokens


def kept_in_both(tokens: Array) -> NDArray[np.bool_]:
    """[L], tokens that both modalities still have."""
    return np.asarray(np.isfinite(tokens[..., 0]).all(axis=0))


def instance_norm(tokens: Array) -> Array:
    """[2, L, C], each channel of each modality with mean 0 and variance 1 over its tokens."""
    mean = tokens.mean(axis=1, keepdims=True)
    normed: Array = (tokens - mean) / np.sqrt(tokens.var(axis=1, keepdims=True) + NORM_EPS)
    return normed


def similarity(first: Array, second: Array) -> Array:
    """Cosine between tokens [..., C], pair by pair."""
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    cosine: Array = (first * second).sum(axis=-1) / np.maximum(lengths, 1e-12)
    return cosine


def mean_similarities(frame: Explanation) -> list[float]:
    """Mean cosine between the modalities' tokens after every block."""
    kept = [tokens[:, kept_in_both(tokens)] for tokens in frame.tokens]
    return [float(similarity(rgb, tir).mean()) for rgb, tir in kept]


def style_gap(tokens: Array) -> float:
    """Distance between the modalities' channel means and deviations, as in the style loss."""
    mean, deviation = tokens.mean(axis=1), tokens.std(axis=1, ddof=1)
    return float(((mean[0] - mean[1]) ** 2 + (deviation[0] - deviation[1]) ** 2).mean())


def activity(tokens: Array) -> Array:
    """[2, L], distance of every token from the mean token; NaN where dropped."""
    lengths: Array = np.linalg.norm(tokens - np.nanmean(tokens, axis=1, keepdims=True), axis=-1)
    return lengths


def _image(axes: Any, image: object, title: str, **options: object) -> Any:  # matplotlib's
    shown = axes.imshow(image, **options)
    axes.set_title(title, fontsize=9)
    axes.set(xticks=[], yticks=[])
    return shown


def draw_tokens(frame: Explanation, path: Path) -> None:
    """Kept tokens over the search crops after each elimination, then the score map."""
    from matplotlib.patches import Rectangle

    side = frame.crops.shape[1]
    cell = side // frame.grid
    figure = new_figure(2.3 * (len(frame.eliminations) + 2), 4.9)
    rows = figure.subplots(2, len(frame.eliminations) + 2, squeeze=False)
    x, y, w, h = frame.box_in_crop
    for modality, (name, image, axes) in enumerate(zip(MODALITIES, frame.crops, rows, strict=True)):
        _image(axes[0], image, f"{name}, {frame.grid**2} tokens")
        for panel, elimination in zip(axes[1:], frame.eliminations, strict=False):
            kept = elimination.kept[modality]
            veil = np.where(kept, 0.0, VEIL).reshape(frame.grid, frame.grid)
            veil = np.kron(veil, np.ones((cell, cell)))[..., None]
            veiled = (image * (1 - veil) + VEIL_LEVEL * veil).astype(np.uint8)
            _image(panel, veiled, f"block {elimination.block}: {int(kept.sum())} of {elimination.before} kept")
        _image(axes[-1], image, f"score {frame.score:.2f}")
        axes[-1].imshow(frame.score_map, cmap="inferno", alpha=0.6, extent=(0, side, side, 0), vmin=0)
        for panel in (axes[0], axes[-1]):
            panel.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor="#ffd21f", linewidth=1.6))
    save_figure(figure, path)


def draw_features(frame: Explanation, path: Path, others: Mapping[str, Explanation] | None = None) -> None:
    """Activity of both modalities and their similarity in some blocks, and the mean similarity over all blocks.

    `others` is the same frame with other weights, by name, for the curve.
    """
    depth = len(frame.tokens)
    blocks = sorted({round(value) for value in np.linspace(0, depth - 1, min(depth, MOST_BLOCKS))})
    figure = new_figure(2.1 * len(blocks) + 3.6, 6.4)
    grid = figure.add_gridspec(3, len(blocks) + 1, width_ratios=[1.0] * len(blocks) + [1.8])
    shape = (frame.grid, frame.grid)
    for column, block in enumerate(blocks):
        tokens = frame.tokens[block]
        for row, (name, strength) in enumerate(zip(MODALITIES, activity(tokens), strict=True)):
            axes = figure.add_subplot(grid[row, column])
            _image(axes, strength.reshape(shape), f"{name}, block {block}", cmap="viridis")
        axes = figure.add_subplot(grid[2, column])
        cosine = similarity(tokens[0], tokens[1]).reshape(shape)
        shown = _image(axes, cosine, f"similarity, block {block}", cmap="coolwarm", vmin=-1, vmax=1)
        if column == len(blocks) - 1:
            figure.colorbar(shown, ax=axes, shrink=0.8)
    curve = figure.add_subplot(grid[:, -1])
    for name, explanation in {"these weights": frame, **(others or {})}.items():
        curve.plot(mean_similarities(explanation), marker=".", label=name)
    curve.set(xlabel="block", ylabel="mean cosine of visible and thermal tokens", ylim=(-1.02, 1.02))
    curve.grid(visible=True, alpha=0.3)
    curve.legend(fontsize=8)
    save_figure(figure, path)


def draw_gap(frame: Explanation, path: Path, block: int) -> None:
    """t-SNE of both modalities' tokens after a block, before and after instance normalisation."""
    tokens = frame.tokens[block][:, kept_in_both(frame.tokens[block])]
    count = tokens.shape[1]
    figure = new_figure(9.4, 4.6)
    panels = {"as they are": tokens, "after instance normalisation": instance_norm(tokens)}
    for axes, (title, values) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        points = tsne(values.reshape(2 * count, -1), perplexity=min(30.0, (2 * count - 1) / 4)).points
        for name, colour, modality in zip(MODALITIES, COLOURS, points.reshape(2, count, 2), strict=True):
            axes.scatter(*modality.T, s=14, color=colour, alpha=0.75, label=name, linewidths=0)
        axes.set_title(f"{title} (style gap {style_gap(values):.3g})", fontsize=9)
        axes.set(xticks=[], yticks=[])
        axes.legend(fontsize=8)
    figure.suptitle(f"search tokens after block {block}", fontsize=10)
    save_figure(figure, path)


def follow_to(tracker: Tracker, source: FolderPairs, init: Box, frame: int) -> tuple[RawPair, Box, RawPair]:
    """The first frames, the target's box before frame number `frame`, and that frame."""
    first: RawPair | None = None
    around = init
    for moment in source:
        if moment.problem:
            raise InputError(moment.problem)
        if moment.rgb is None or moment.tir is None:
            continue
        if first is None:
            tracker.init(moment.rgb, moment.tir, init)
            first = first_pair(moment.rgb, moment.tir, tracker.config)
        elif moment.index == frame:
            return first, around, check_pair(moment.rgb, moment.tir, first.form, tracker.config)
        else:
            around = tracker.update(moment.rgb, moment.tir).box
    raise InputError(f"frame {frame} was not reached")


def explain(options: argparse.Namespace) -> None:
    """Track up to the frame and write every file."""
    require_matplotlib()
    out: Path = options.out
    refuse_overwrite([out / name for name in FILES], force=options.force)
    source = FolderPairs(options.rgb, options.tir)
    if source.length is not None and options.frame >= source.length:
        raise InputError(f"--frame {options.frame}: there are {source.length} pairs, the last is {source.length - 1}")
    # Faster engines fuse steps that are drawn here.
    engine = "reference" if options.engine == "auto" else options.engine
    tracker = Tracker(options.weights, options.model, engine, options.device, options.dtype, seed=options.seed)
    depth = tracker.engine.config.depth
    block = depth - 1 if options.block is None else options.block
    if block >= depth:
        raise InputError(f"--block {block}: the network has {depth}, the last is {depth - 1}")
    first, around, pair = follow_to(tracker, source, options.init, options.frame)
    frame = explain_frame(tracker.engine, first, options.init, pair, around)
    others = {}
    if options.baseline:
        baseline = Tracker(options.baseline, None, engine, options.device, options.dtype)
        others[Path(options.baseline).name] = explain_frame(baseline.engine, first, options.init, pair, around)
    make_folder(out)
    draw_tokens(frame, out / "tokens.png")
    draw_features(frame, out / "features.png", others)
    draw_gap(frame, out / "gap.png", block)
    write_atomically(out / "explain.json", as_json(options.frame, frame, others, block))
    kept = " -> ".join(str(count) for count in [frame.grid**2, *(int(e.kept[0].sum()) for e in frame.eliminations)])
    print(f"frame {options.frame}: score {frame.score:.3f}, tokens {kept}; written to {out}: {', '.join(FILES)}")


def as_json(number: int, frame: Explanation, others: Mapping[str, Explanation], block: int) -> str:
    """The numbers behind the figures; kept tokens by modality, because they differ for elimination "ce"."""
    tokens = frame.tokens[block][:, kept_in_both(frame.tokens[block])]
    content = {
        "frame": number,
        "box": list(frame.box),
        "score": frame.score,
        "stages": [
            {"block": e.block, "before": e.before}
            | {"kept": {name: row.nonzero()[0].tolist() for name, row in zip(MODALITIES, e.kept, strict=True)}}
            for e in frame.eliminations
        ],
        "similarity": {name: mean_similarities(e) for name, e in {"these weights": frame, **others}.items()},
        "style_gap": {"block": block, "as_is": style_gap(tokens), "normalised": style_gap(instance_norm(tokens))},
    }
    return json.dumps(content, indent=1) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rgb", type=Path, metavar="RGB", help="folder of visible frames")
    parser.add_argument("tir", type=Path, metavar="TIR", help="folder of thermal frames")
    parser.add_argument("--init", type=box, required=True, metavar="x,y,w,h", help="target box in the first frame")
    parser.add_argument("--frame", type=positive, default=1, metavar="N", help="frame to draw, from 0 (default: 1)")
    parser.add_argument("--block", type=not_negative, metavar="B", help="block for the t-SNE (default: the last)")
    parser.add_argument("--baseline", metavar="FILE", help="other weights to compare the similarity with")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the figures")
    parser.add_argument("--force", action="store_true", help="overwrite existing figures")
    add_model_options(parser)
    options = parser.parse_args(arguments)
    try:
        explain(options)
    except CkdFastError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
