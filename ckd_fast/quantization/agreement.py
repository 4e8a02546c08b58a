"""How closely one engine follows another: kept tokens, maps and boxes, frame by frame."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ckd_fast.boxes import iou
from ckd_fast.config import TrackerConfig
from ckd_fast.datasets import ClipConfig, SyntheticClip
from ckd_fast.engines import Engine, Search, Target
from ckd_fast.frames import RawPair, check_box, check_pair, first_pair
from ckd_fast.types import Box
from ckd_fast.weights import Agreement

if TYPE_CHECKING:
    from ckd_fast.frames import Frame


@dataclass(frozen=True, eq=False)
class Clip:
    """Footage of one target, which is in `box` in the first pair."""

    name: str
    pairs: tuple[RawPair, ...]  # at least two
    box: Box

    @classmethod
    def of(cls, name: str, frames: Iterable[tuple[Frame, Frame]], box: Sequence[float]) -> Clip:
        """Check frames as the tracker does."""
        config = TrackerConfig()
        pairs: list[RawPair] = []
        for rgb, tir in frames:
            pairs.append(check_pair(rgb, tir, pairs[0].form, config) if pairs else first_pair(rgb, tir, config))
        return cls(name, tuple(pairs), check_box(box, pairs[0].form.rgb_size))


def generated_clip(seed: int, frames: int, width: int = 640, height: int = 480) -> Clip:
    """A synthetic clip; equal arguments give equal ones."""
    drawn = list(SyntheticClip(ClipConfig(width, height, frames, seed)))
    return Clip.of(f"generated {seed}", [(frame.rgb, frame.tir) for frame in drawn], drawn[0].box)


@dataclass(frozen=True, eq=False)
class Seen:
    """What an engine made of one pair of a clip."""

    index: int  # of the pair
    around: Box  # where it searched
    box: Box  # what it found
    kept: tuple[Tensor, ...]  # of each elimination: the cells that stay [2, 1, K]
    maps: Tensor  # score, size, offset [1, 5, g, g]


@dataclass(frozen=True)
class FrameAgreement:
    """Two engines on one pair, which both searched around the same box."""

    kept: float  # share of the first engine's kept tokens that the other keeps too, over all eliminations
    iou: float  # of the boxes
    maps: float  # error of the maps relative to the first engine's, both as Euclidean norms


def track(engine: Engine, clip: Clip) -> list[Seen]:
    """Follow the target: each pair is searched around the box of the last."""
    target, around = engine.make_target(clip.pairs[0], clip.box), clip.box
    seen = []
    for index in range(1, len(clip.pairs)):
        seen.append(_search(engine, clip, target, index, around))
        around = seen[-1].box
    return seen


def search_again(engine: Engine, clip: Clip, seen: Iterable[Seen]) -> list[Seen]:
    """Search the same pairs around the same boxes as another engine did, so that errors do not add up."""
    target = engine.make_target(clip.pairs[0], clip.box)
    return [_search(engine, clip, target, each.index, each.around) for each in seen]


def _search(engine: Engine, clip: Clip, target: Target, index: int, around: Box) -> Seen:
    steps: dict[str, Tensor] = {}
    search = Search(target, around, engine.config.search_factor)
    (found,) = engine.start(
        [search], clip.pairs[index], lambda name, value: steps.update({name: value.clone()})
    ).result()
    kept = tuple(value for name, value in steps.items() if name.endswith(".eliminate"))
    maps = torch.cat([steps[f"head.{name}"].float() for name in ("score", "size", "offset")], dim=1)
    return Seen(index, around, found.box, kept, maps)


def compare(first: Seen, other: Seen) -> FrameAgreement:
    """How closely `other` follows `first`."""
    stay = [
        torch.isin(cells, others).float().mean().item()
        for mine, theirs in zip(first.kept, other.kept, strict=True)
        for cells, others in zip(mine.flatten(0, 1), theirs.flatten(0, 1), strict=True)
    ]
    error = (other.maps - first.maps).norm() / first.maps.norm()
    return FrameAgreement(statistics.fmean(stay) if stay else 1.0, float(iou(first.box, other.box)), float(error))


def summary(frames: Sequence[FrameAgreement]) -> Agreement:
    """Over many frames: the mean share of kept tokens, the median IoU."""
    kept, overlap = statistics.fmean(f.kept for f in frames), statistics.median(f.iou for f in frames)
    return Agreement(len(frames), kept, overlap)
