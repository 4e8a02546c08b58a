"""Look inside one frame: which tokens are dropped where, what the two modalities' features have in common.

Everything is observed through the engine's named steps, so what is shown is what tracked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ckd_fast.errors import EngineError, InputError

if TYPE_CHECKING:
    from ckd_fast.engines import Engine
    from ckd_fast.frames import RawPair
    from ckd_fast.reference.config import ModelConfig
    from ckd_fast.types import Box

Array = NDArray[np.float32]
NORM_EPS = 1e-5  # of the instance norm, as in the content loss


@dataclass(frozen=True)
class Stage:
    """One elimination.

    Attributes:
        block: in which it happens.
        kept: [2, L] bool, visible and thermal, over the search grid in raster order; equal for elimination "mce".
        before: number of tokens that were left until then.
    """

    block: int
    kept: NDArray[np.bool_]
    before: int


@dataclass(frozen=True)
class Explanation:
    """What happened in one frame.

    Attributes:
        crops: search crops [2, S, S, 3] uint8, visible and thermal.
        stages: eliminations in order.
        tokens: search tokens after every block [2, L, C] in raster order, NaN where dropped.
        score_map: [g, g].
        box: found.
        box_in_crop: the same in pixels of the crop.
        score: of the box.
    """

    crops: NDArray[np.uint8]
    stages: tuple[Stage, ...]
    tokens: tuple[Array, ...]
    score_map: Array
    box: Box
    box_in_crop: Box
    score: float

    @property
    def grid(self) -> int:
        """Side of the search grid in tokens."""
        return int(self.score_map.shape[0])


def explain_frame(engine: Engine, first: RawPair, target: Box, pair: RawPair, around: Box) -> Explanation:
    """Find a target once more and keep what the network did.

    Args:
        engine: one whose steps can be observed.
        first: frames of the initialisation.
        target: the target there.
        pair: frames to explain, both modalities.
        around: the target's box in the frame before.
    """
    from ckd_fast.engines.base import Search
    from ckd_fast.frames import register
    from ckd_fast.reference.preprocess import PIXEL_MEAN, PIXEL_STD, crop

    visible = register(pair).rgb
    if visible is None or pair.tir is None:
        raise InputError("both modalities are needed to explain a frame")
    config = engine.config
    seen: dict[str, Any] = {}

    def keep(name: str, value: Any) -> None:  # noqa: ANN401  # a tensor of whatever the step makes
        seen[name] = value.detach().float().cpu().numpy()

    factor = config.search_factor
    (found,) = engine.start([Search(engine.make_target(first, target), around, factor)], pair, keep).result()
    needed = ["crop", "head.score", *(f"block{block}.mlp" for block in range(config.depth))]
    needed += [f"block{block}.eliminate" for block in range(config.depth) if config.eliminates_at(block)]
    hidden = [name for name in needed if name not in seen]
    if hidden:
        raise EngineError(f"engine {engine} does not show its step {hidden[0]}: use the engine 'reference'")
    pixels = seen["crop"][:, 0].transpose(0, 2, 3, 1) * np.array(PIXEL_STD) + np.array(PIXEL_MEAN)
    side = config.search_size
    scale = crop(visible, around, factor, side).resize_factor
    centre = around[0] + around[2] / 2, around[1] + around[3] / 2
    x, y, w, h = found.box
    inside = ((x - centre[0]) * scale + side / 2, (y - centre[1]) * scale + side / 2, w * scale, h * scale)
    stages, tokens = _stages_and_tokens(config, seen)
    return Explanation(
        crops=np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8),
        stages=tuple(stages),
        tokens=tuple(tokens),
        score_map=seen["head.score"].reshape(seen["head.score"].shape[-2:]),
        box=found.box,
        box_in_crop=inside,
        score=found.score,
    )


def _stages_and_tokens(config: ModelConfig, seen: Mapping[str, Any]) -> tuple[list[Stage], list[Array]]:
    length = config.search_tokens
    positions = np.tile(np.arange(length), (2, 1))  # [2, tokens], raster position of every current search token
    stages: list[Stage] = []
    tokens: list[Array] = []
    for block in range(config.depth):
        if config.eliminates_at(block):
            before = positions.shape[1]
            positions = seen[f"block{block}.eliminate"][:, 0].astype(np.int64)
            kept = np.zeros((2, length), bool)
            np.put_along_axis(kept, positions, values=True, axis=1)
            stages.append(Stage(block, kept, before))
        current = seen[f"block{block}.mlp"][:, 0, config.template_tokens :]
        raster = np.full((2, length, current.shape[-1]), np.nan, np.float32)
        for modality in range(2):
            raster[modality, positions[modality]] = current[modality]
        tokens.append(raster)
    return stages, tokens


def alive(tokens: Array) -> NDArray[np.bool_]:
    """[L], the tokens that both modalities still have."""
    return np.asarray(np.isfinite(tokens[..., 0]).all(axis=0))


def instance_norm(tokens: Array) -> Array:
    """[2, L, C], every channel of each modality to mean 0 and variance 1 over its tokens."""
    mean = tokens.mean(axis=1, keepdims=True)
    variance = tokens.var(axis=1, keepdims=True)
    normed: Array = (tokens - mean) / np.sqrt(variance + NORM_EPS)
    return normed


def similarity(first: Array, second: Array) -> Array:
    """Cosine of the angle between tokens [..., C], pair by pair."""
    products = (first * second).sum(axis=-1)
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    cosine: Array = products / np.maximum(lengths, 1e-12)
    return cosine


def style_gap(tokens: Array) -> float:
    """Distance of the modalities' channel means and deviations, as the style loss measures it."""
    mean, deviation = tokens.mean(axis=1), tokens.std(axis=1, ddof=1)
    return float(((mean[0] - mean[1]) ** 2 + (deviation[0] - deviation[1]) ** 2).mean())


def activity(tokens: Array) -> Array:
    """[2, L], length of every token without what all tokens share; NaN where dropped."""
    lengths: Array = np.linalg.norm(tokens - np.nanmean(tokens, axis=1, keepdims=True), axis=-1)
    return lengths
