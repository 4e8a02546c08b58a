"""Training labels: the score map's target, and which search patches the students see."""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian_radius(sizes: Tensor, min_overlap: float = 0.7) -> Tensor:
    """CornerNet's radius for boxes [B, 2] (w, h) in cells, in its widespread variant.

    A box whose corners move by less than the radius should overlap the original by `min_overlap`. The three cases
    solve a quadratic each and use (b + root) / 2 where the correct root divides by 2a; every tracker of this family
    was trained with it, so it stays.
    """
    w, h = sizes.unbind(-1)
    total, area = w + h, w * h
    root1 = (total**2 - 4 * area * (1 - min_overlap) / (1 + min_overlap)).sqrt()
    root2 = ((2 * total) ** 2 - 16 * (1 - min_overlap) * area).sqrt()
    root3 = ((2 * min_overlap * total) ** 2 + 16 * min_overlap * (1 - min_overlap) * area).sqrt()
    candidates = [(total + root1) / 2, (2 * total + root2) / 2, (-2 * min_overlap * total + root3) / 2]
    return torch.stack(candidates).amin(0)


def score_targets(boxes_xywh: Tensor, grid: int) -> Tensor:
    """A Gaussian around the cell of each box's centre, [B, 4] in units of the crop -> [B, 1, grid, grid].

    The centre is rounded to a cell, the radius truncated to whole cells, sigma = (2 r + 1) / 6, zero beyond r.
    """
    boxes = boxes_xywh * grid
    centre = (boxes[:, :2] + boxes[:, 2:] / 2).round()  # [B, 2]
    radius = gaussian_radius(boxes[:, 2:]).clamp(min=0).trunc()  # [B]
    steps = torch.arange(grid, device=boxes.device, dtype=boxes.dtype)
    dx = steps[None, None, :] - centre[:, 0, None, None]  # [B, 1, grid]
    dy = steps[None, :, None] - centre[:, 1, None, None]  # [B, grid, 1]
    sigma = ((2 * radius.double() + 1) / 6)[:, None, None]  # float64, as numpy draws it
    distance = dx.double().square() + dy.double().square()
    values = torch.exp(-distance / (2 * sigma.square())).to(boxes.dtype)
    reach = radius[:, None, None]
    inside = (dx.abs() <= reach) & (dy.abs() <= reach)
    return torch.where(inside, values, 0.0).unsqueeze(1)


def visible_patches(batch: int, tokens: int, hidden_ratio: float, generator: torch.Generator) -> Tensor:
    """Which search patches the students see, [B, tokens] bool: each hidden with probability `hidden_ratio`.

    Drawn anew in every iteration and shared by both students; teachers and template are never masked. The ratio is an
    expectation. The authors' setting for masking only some of the samples is inverted twice in their program and was
    never used; it is not offered here.
    """
    return torch.rand(batch, tokens, generator=generator, device=generator.device) > hidden_ratio
