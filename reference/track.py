"""One frame of the tracker, as the paper describes it: crop, network, window, peak, box.

    window = hann_window(config.search_grid)
    template = make_template(student.embed_template, config, (rgb, tir), box)
    for frames in video:
        view = look(config, [template], [box], [config.search_factor], frames)
        search = normalise(view.crops, view.present)
        maps = student(view.template, search, view.deciding, view.present).maps
        (found,) = locate(maps, window, view)
        box = found.box

The engines of `ckd_fast` that crop on the host do just this, each with its own way to run the network between `look`
and `locate`. Engine `triton` does the same work in kernels and is compared with this step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .boxes import Box, clip_box, find_peak, to_frame
from .config import ModelConfig
from .elimination import template_mask
from .head import HeadMaps
from .preprocess import Frames, box_in_crop, crop_targets, crop_window, normalise


@dataclass(frozen=True)
class Template:
    """What the tracker keeps of a target."""

    tokens: Tensor  # embedded template crops [2, 1, T, C]
    deciding: Tensor  # template tokens that decide which search tokens are dropped [1, T]


@dataclass(frozen=True)
class View:
    """What the network is shown: B targets in one pair of frames."""

    template: Tensor  # template tokens [2, B, T, C]
    deciding: Tensor  # template tokens that decide which search tokens are dropped [B, T]
    crops: Tensor  # search crops [2, B, H, W, 3] uint8, black where a modality is missing
    # [2, B] bool, False where a modality is missing: it has no vote in what is dropped. None: both are there
    present: Tensor | None
    boxes: Sequence[Box]  # the crops' centres: where the targets were last
    scales: Sequence[float]  # crop pixels per frame pixel
    frame_size: tuple[int, int]  # height, width


@dataclass(frozen=True)
class Prediction:
    """One target in one frame: its box, the score of the best cell without the window, that cell's row-major index."""

    box: Box
    score: float
    cell: int


@torch.inference_mode()
def make_template(embed: Callable[[Tensor], Tensor], config: ModelConfig, frames: Frames, box: Box) -> Template:
    """Crop and embed the template of a new target; `embed` maps crops [2, 1, 3, h, w] to tokens [2, 1, T, C]."""
    crops, _ = crop_targets(frames, [box], [config.template_factor], config.template_size)
    tokens = embed(normalise(crops))
    return Template(tokens, deciding_tokens(config, box).to(tokens.device))


@torch.inference_mode()
def look(
    config: ModelConfig, templates: Sequence[Template], boxes: Sequence[Box], factors: Sequence[float], frames: Frames
) -> View:
    """Crop both modalities around each target's last box.

    Args:
        config: the model's sizes.
        templates, boxes: of each target, and where it was last.
        factors: of each target, the side of its search crop in multiples of sqrt(box area).
        frames: the pair; one of them may be missing.
    """
    crops, scales = crop_targets(frames, boxes, factors, config.search_size)
    template = torch.cat([target.tokens for target in templates], dim=1)
    deciding = torch.cat([target.deciding for target in templates])
    present = None
    if any(frame is None for frame in frames):
        present = torch.tensor([[frame is not None] for frame in frames]).expand(2, len(boxes))
    size = next(frame.shape[:2] for frame in frames if frame is not None)
    return View(template, deciding, crops, present, boxes, scales, size)


@torch.inference_mode()
def locate(maps: HeadMaps, window: Tensor, view: View) -> list[Prediction]:
    """The best cell of each target under the window, and its box: from the crop to the frame, and clipped to it."""
    peak = find_peak(maps, window)
    if not (torch.isfinite(peak.boxes_cxcywh).all() and torch.isfinite(peak.score).all()):
        raise FloatingPointError("the network's result is not finite")
    found = []
    peaks = zip(peak.boxes_cxcywh, peak.score.tolist(), peak.cell.tolist(), strict=True)
    for (box, score, cell), last, scale in zip(peaks, view.boxes, view.scales, strict=True):
        in_frame = to_frame(box, last, scale, view.crops.shape[2])
        found.append(Prediction(clip_box(in_frame, *view.frame_size), score, cell))
    return found


def deciding_tokens(config: ModelConfig, box: Box) -> Tensor:
    """The template tokens that decide which search tokens are dropped, for a target that starts in `box` [1, T]."""
    boxes = None
    if config.template_range == "GT_BOX":
        scale = config.template_size / crop_window(box, config.template_factor).side
        boxes = torch.tensor([box_in_crop(box, box, scale, config.template_size)])
    return template_mask(config, boxes)
