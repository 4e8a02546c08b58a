"""One frame of the tracker, as the paper describes it: crop, network, window, peak, box.

    window = hann_window(config.search_grid)
    template = make_template(student.embed_template, config, (rgb, tir), box)
    for frames in video:
        (found,) = track_frame(network, config, window, [template], [box], [config.search_factor], frames)
        box = found.box

`network` runs the student, see `Network`. The engines of `ckd_fast` that crop on the host call these two functions
with their own networks; engine `triton` does the same work in kernels and is compared with this step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .boxes import Box, clip_box, find_peak, to_frame
from .config import ModelConfig
from .elimination import template_mask
from .head import HeadMaps
from .model import OnStep
from .preprocess import Frames, box_in_crop, crop_targets, crop_window


class Network(Protocol):
    """Runs the student for B targets."""

    def __call__(self, template: Tensor, search: Tensor, deciding: Tensor, present: Tensor | None, /) -> HeadMaps:
        """Returns maps in float32 on the CPU.

        Args:
            template: template tokens [2, B, T, C].
            search: search crops [2, B, 3, H, W]; device and precision are those of `template`.
            deciding: template tokens that decide which search tokens are dropped [B, T].
            present: [2, B] bool, False where a modality is missing; None: both are there.
        """


@dataclass(frozen=True)
class Template:
    """What the tracker keeps of a target."""

    tokens: Tensor  # embedded template crops [2, 1, T, C]
    deciding: Tensor  # template tokens that decide which search tokens are dropped [1, T]


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
    tokens = embed(crops)
    return Template(tokens, deciding_tokens(config, box).to(tokens.device))


@torch.inference_mode()
def track_frame(
    network: Network,
    config: ModelConfig,
    window: Tensor,
    templates: Sequence[Template],
    boxes: Sequence[Box],
    factors: Sequence[float],
    frames: Frames,
    on_step: OnStep | None = None,
) -> list[Prediction]:
    """Find B targets in one pair of frames.

    Args:
        network: runs the student.
        config: its sizes.
        window: prefers little motion, see `hann_window`.
        templates, boxes: of each target, and where it was last.
        factors: of each target, the side of its search crop in multiples of sqrt(box area).
        frames: the pair; one of them may be missing.
        on_step: called with the crops and with the boxes; between them lie the network's steps.
    """
    height, width = next(frame.shape[:2] for frame in frames if frame is not None)

    # Crop both modalities around each target's last box.
    template = torch.cat([target.tokens for target in templates], dim=1)  # [2, B, T, C]
    deciding = torch.cat([target.deciding for target in templates])  # [B, T]
    crops, scales = crop_targets(frames, boxes, factors, config.search_size)
    search = crops.to(template)  # [2, B, 3, H, W], on the network's device and in its precision
    if on_step is not None:
        on_step("crop", search)

    # The network: score, size and centre of the target in every cell of the search grid. A missing modality has no
    # vote in which search tokens are dropped.
    present = None
    if any(frame is None for frame in frames):
        here = torch.tensor([[frame is not None] for frame in frames], device=template.device)
        present = here.expand(2, len(boxes))
    maps = network(template, search, deciding, present)

    # The best cell, under the window.
    peak = find_peak(maps, window)
    if not (torch.isfinite(peak.boxes_cxcywh).all() and torch.isfinite(peak.score).all()):
        raise FloatingPointError("the network's result is not finite")

    # Its box, from the crop back to the frame, and clipped to it.
    found = []
    peaks = zip(peak.boxes_cxcywh, peak.score.tolist(), peak.cell.tolist(), strict=True)
    for (box, score, cell), last, scale in zip(peaks, boxes, scales, strict=True):
        in_frame = to_frame(box, last, scale, config.search_size)
        found.append(Prediction(clip_box(in_frame, height, width), score, cell))
    if on_step is not None:
        on_step("decode", torch.tensor([target.box for target in found], dtype=torch.float64))
    return found


def deciding_tokens(config: ModelConfig, box: Box) -> Tensor:
    """The template tokens that decide which search tokens are dropped, for a target that starts in `box` [1, T]."""
    boxes = None
    if config.template_range == "GT_BOX":
        scale = config.template_size / crop_window(box, config.template_factor).side
        boxes = torch.tensor([box_in_crop(box, box, scale, config.template_size)])
    return template_mask(config, boxes)
