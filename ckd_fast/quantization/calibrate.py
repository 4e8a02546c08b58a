"""Calibrate a model for int8 on clips, and keep in float what int8 would spoil.

The last quarter of every clip calibrates nothing: it measures the agreement. If that of the other frames is too low
with every layer in int8, each group of layers runs in int8 alone, on a few of those frames. The groups that cost the
maps most stay in higher precision: the worst, the worst two, four and so on, until the agreement is as wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from ckd_fast.cache import Cache
from ckd_fast.engines import Engine
from ckd_fast.engines.host import ReferenceEngine
from ckd_fast.errors import EngineError, InputError
from ckd_fast.reference.model import MODALITIES, Student
from ckd_fast.weights import Agreement, Calibration, LoadedModel, layer_inputs

from .agreement import Clip, FrameAgreement, Seen, compare, search_again, summary, track

HELD_BACK = 0.25  # of every clip, at its end
FEWEST_PAIRS = 5  # of a clip: the first, and one that is held back
ONE_MISSES = 4  # of so many pairs one is also observed without either modality
FRAMES_ALONE = 8  # on which a group runs in int8 alone
Tracked = tuple[Clip, list[Seen]]  # a clip, and some of its pairs as float32 saw them


@dataclass(frozen=True)
class Wanted:
    """The least agreement with float32, see `Agreement`."""

    kept: float
    iou: float

    def met_by(self, agreement: Agreement) -> bool:
        return agreement.kept >= self.kept and agreement.iou >= self.iou


def quantize(
    model: LoadedModel, clips: Sequence[Clip], source: str, wanted: Wanted, say: Callable[[str], None]
) -> LoadedModel:
    """The model with a calibration; its agreement may be lower than wanted.

    Args:
        model: weights.
        clips: footage, at least one clip.
        source: what it shows, in words.
        wanted: keep layers in higher precision until this agreement.
        say: called with what was done and measured.
    """
    short = next((clip for clip in clips if len(clip.pairs) < FEWEST_PAIRS), None)
    if short is not None or not clips:
        name, count = (short.name, len(short.pairs)) if short is not None else ("no clip", 0)
        raise InputError(f"{name}: {count} pairs of frames; calibration needs clips of at least {FEWEST_PAIRS}")
    calibrating, held_back = _in_float32(model, clips)
    frames = sum(len(seen) for _, seen in calibrating)
    inputs = observe(model, calibrating)
    say(f"observed {len(inputs)} layers on {frames} frames: {source}")
    calibration = Calibration(inputs, (), frames, source, Agreement(frames, 1.0, 1.0))
    calibration = _until_it_agrees(model, calibration, calibrating, wanted, say)
    agreement = summary(_int8_beside(model, calibration, held_back))
    return replace(model, calibration=replace(calibration, agreement=agreement))


def _in_float32(model: LoadedModel, clips: Sequence[Clip]) -> tuple[list[Tracked], list[Tracked]]:
    """Pairs that calibrate, and pairs that are held back. The engine is gone afterwards: it takes much memory."""
    plain = _uncached(model, torch.float32)
    calibrating, held_back = [], []
    for clip in clips:
        seen = track(plain, clip)
        cut = len(seen) - max(1, round(HELD_BACK * len(seen)))
        calibrating.append((clip, seen[:cut]))
        held_back.append((clip, seen[cut:]))
    return calibrating, held_back


def observe(model: LoadedModel, tracked: Sequence[Tracked]) -> dict[str, Tensor]:
    """Lowest and highest value of each channel of the layers' inputs [2, C], see `Calibration`.

    A missing modality gives values that no pair of frames does, and what lies beyond a range is cut off.
    """
    engine = _Observer(model)
    for clip, seen in tracked:
        search_again(engine, clip, seen)
        for missing in ({"rgb": None}, {"tir": None}):
            pairs = (clip.pairs[0], *(replace(pair, **missing) for pair in clip.pairs[1:]))  # type: ignore[arg-type]
            search_again(engine, replace(clip, pairs=pairs), seen[::ONE_MISSES])
    return {name: engine.seen[name] for name in layer_inputs(model.config)}


class _Observer(ReferenceEngine):
    """The reference, which writes down the range of what its layers are given."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__(model, torch.device("cpu"), torch.float32)
        self.seen: dict[str, Tensor] = {}
        for name, module in _watched(self._student):
            module.register_forward_pre_hook(self._watch(name))

    def _watch(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            (x,) = given  # [B, N, C]
            if isinstance(module, nn.LayerNorm):  # the layer behind it takes over its scale and shift
                x = functional.layer_norm(x, x.shape[-1:], eps=module.eps)
            low, high = (each.values for each in (x.flatten(0, -2).min(dim=0), x.flatten(0, -2).max(dim=0)))
            if name in self.seen:
                low, high = torch.minimum(low, self.seen[name][0]), torch.maximum(high, self.seen[name][1])
            self.seen[name] = torch.stack([low, high])

        return look


def _watched(student: Student) -> Iterator[tuple[str, nn.Module]]:
    """Layers by the names of `layer_inputs`, each with the module to watch: itself, or the norm in front of it."""
    for branch_name, branch in zip(MODALITIES[: student.config.branches], student.branches, strict=False):
        for index, block in enumerate(branch.blocks):
            for layer, module in (("qkv", "norm1"), ("proj", "proj"), ("fc1", "norm2"), ("fc2", "fc2")):
                yield f"{branch_name}.blocks.{index}.{layer}", getattr(block, module)
        yield f"{branch_name}.head", branch.norm


def group_of(layer: str) -> str:
    """Layers are judged together with their twin of the other branch: "rgb.blocks.3.fc1" -> "blocks.3.fc1"."""
    return layer.partition(".")[2]


def costs_alone(
    model: LoadedModel, calibration: Calibration, tracked: Sequence[Tracked], say: Callable[[str], None]
) -> Mapping[str, float]:
    """Each group of layers in int8 alone, the worst first: the mean error of the maps, see `FrameAgreement`."""
    some = _some_frames(tracked, FRAMES_ALONE)
    costs = {}
    for group in dict.fromkeys(map(group_of, calibration.inputs)):
        others = tuple(layer for layer in calibration.inputs if group_of(layer) != group)
        frames = _int8_beside(model, replace(calibration, in_float=others), some)
        costs[group] = sum(frame.maps for frame in frames) / len(frames)
        say(f"{group} alone in int8: maps differ by {costs[group]:.4f}")
    return dict(sorted(costs.items(), key=lambda item: -item[1]))


def _until_it_agrees(
    model: LoadedModel,
    calibration: Calibration,
    tracked: Sequence[Tracked],
    wanted: Wanted,
    say: Callable[[str], None],
) -> Calibration:
    agreement = summary(_int8_beside(model, calibration, tracked))
    say(f"all layers in int8: {_words(agreement)}")
    if wanted.met_by(agreement):
        return calibration
    worst = list(costs_alone(model, calibration, tracked, say))
    count = 1
    while not wanted.met_by(agreement) and count < len(worst):
        in_float = tuple(layer for layer in calibration.inputs if group_of(layer) in worst[:count])
        calibration = replace(calibration, in_float=in_float)
        agreement = summary(_int8_beside(model, calibration, tracked))
        say(f"{', '.join(worst[:count])} in higher precision: {_words(agreement)}")
        count *= 2
    return calibration


def _words(agreement: Agreement) -> str:
    return f"kept tokens {agreement.kept:.3f}, box IoU {agreement.iou:.3f}"


def _int8_beside(model: LoadedModel, calibration: Calibration, tracked: Sequence[Tracked]) -> list[FrameAgreement]:
    """Int8 on the pairs that float32 saw."""
    engine = _uncached(replace(model, calibration=calibration), torch.int8)
    return [
        compare(plain, ours)
        for clip, seen in tracked
        for plain, ours in zip(seen, search_again(engine, clip, seen), strict=True)
    ]


def _uncached(model: LoadedModel, dtype: torch.dtype) -> Engine:
    """Engine openvino. Its graphs are observed, and most are never used again: they push nothing out of the cache."""
    try:
        from ckd_fast.engines.openvino.engine import OpenVinoEngine
    except ImportError as error:
        raise EngineError(
            f"calibrating needs the package openvino, which cannot be imported ({error}): "
            "pip install 'ckd_fast[quantize]'"
        ) from error
    return OpenVinoEngine(model, dtype, cache=Cache(None))


def _some_frames(tracked: Sequence[Tracked], count: int) -> list[Tracked]:
    """At most about so many frames, spread evenly over all clips."""
    stride = max(1, sum(len(seen) for _, seen in tracked) // count)
    return [(clip, seen[::stride]) for clip, seen in tracked]
