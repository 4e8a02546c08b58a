"""Which search tokens stay: candidate elimination, per branch (CE) or for both modalities together (MCE).

With p[m, h, t, s] the attention of template token t to search token s in modality m and head h (softmax over all
current keys, template and search; not renormalised over the search keys):

    MCE   score[s] = mean over h of mean over selected t of max over m of p[m, h, t, s]      one decision for all
    CE    score[m, s] = mean over h of mean over selected t of p[m, h, t, s]                each branch decides

The ceil(keep_ratio * L) best of the L current search tokens stay, in descending order of score; template tokens always
stay. The order is not put back to raster: attention and per-token layers do not care, and `restore` scatters by the
original positions at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import ModelConfig


@dataclass(frozen=True)
class Elimination:
    """What one elimination decided, for S branches and B samples."""

    block: int  # the block in which it happened
    scores: Tensor  # score of every current search token, in current order [S, B, L] (equal rows over S for MCE)
    kept_index: Tensor  # kept tokens as indexes into the current order [S, B, K], best first
    kept: Tensor  # kept tokens as raster positions in the search grid [S, B, K], best first
    removed: Tensor  # removed tokens as raster positions [S, B, L - K], in descending score


def template_mask(config: ModelConfig, template_boxes: Tensor | None = None, batch: int = 1) -> Tensor:
    """Which template tokens decide, [B, T] bool.

    Args:
        config: its `template_range` says which.
        template_boxes: for "GT_BOX": the target in the template crop [B, 4], (x, y, w, h) in units of the crop's side.
        batch: B for the other ranges.
    """
    grid = config.template_grid
    if config.template_range == "GT_BOX":
        if template_boxes is None:
            raise ValueError("template_range 'GT_BOX' needs template_boxes [B, 4]")
        return _cells_under_boxes(config, template_boxes)
    mask = torch.zeros(grid, grid, dtype=torch.bool)
    if config.template_range == "ALL":
        mask[:] = True
    elif config.template_range == "CTR_POINT":
        # On an even grid: the cell above and left of the geometric centre, token 27 of 64, as the authors have it.
        mask[(grid - 1) // 2, (grid - 1) // 2] = True
    else:
        mask[(grid - 1) // 2 : grid // 2 + 1, (grid - 1) // 2 : grid // 2 + 1] = True
    return mask.flatten().expand(batch, -1)


def _cells_under_boxes(config: ModelConfig, template_boxes: Tensor) -> Tensor:
    """GT_BOX: cells whose centre lies in the box, by the authors' arithmetic.

    They paint the box into a full-size mask and shrink it bilinearly, so a cell is selected when one of the pixels
    around its centre (p*i + p/2 - 1 and p*i + p/2 for patch size p) is painted. The painted range is a Python slice
    [int(x), int(x + w - 1)): a negative start counts from the far end. Kept, because their numbers contain it.
    """
    size, patch, grid = config.template_size, config.patch_size, config.template_grid
    masks = []
    for x, y, w, h in (template_boxes.float() * size).tolist():
        painted = torch.zeros(2, size, dtype=torch.bool)
        painted[0, int(y) : int(y + h - 1)] = True
        painted[1, int(x) : int(x + w - 1)] = True
        centres = torch.arange(grid) * patch + patch // 2
        rows, columns = (axis[centres] | axis[centres - 1] for axis in painted)
        mask = rows[:, None] & columns[None, :]
        if not mask.any():
            # Thin boxes select no cell. The authors then average over nothing (NaN scores, an arbitrary order): we
            # let the centre cell decide.
            mask[(grid - 1) // 2, (grid - 1) // 2] = True
        masks.append(mask.flatten())
    return torch.stack(masks)


def template_probabilities(queries: Tensor, keys: Tensor, template_tokens: int) -> Tensor:
    """Attention of the template tokens to the search tokens; [..., heads, N, d] each -> [..., heads, T, L]."""
    scaled = queries[..., :template_tokens, :] * queries.shape[-1] ** -0.5
    probabilities: Tensor = (scaled @ keys.transpose(-1, -2)).softmax(-1)
    return probabilities[..., template_tokens:]


def token_scores(
    probabilities: Tensor, mask: Tensor, config: ModelConfig, voters: slice, present: Tensor | None = None
) -> Tensor:
    """Scores of the search tokens.

    Args:
        probabilities: [S, B, heads, T, L].
        mask: template tokens that decide [B, T].
        config: "mce" or "ce".
        voters: branches that decide under "mce" (in training the students only, and all branches follow).
        present: [S, B] bool, False where a modality is missing: it has no vote and follows the other one.

    Returns:
        [S, B, L].
    """
    if present is not None:
        # Probabilities are >= 0, so a zeroed branch never wins the maximum.
        probabilities = probabilities * present[:, :, None, None, None]
    together = probabilities[voters].amax(0)  # [B, heads, T, L]
    if config.elimination == "mce":
        probabilities = together.expand_as(probabilities)
    elif present is not None:
        probabilities = torch.where(present[:, :, None, None, None], probabilities, together)
    weight = mask.to(probabilities.dtype)[None, :, None, :, None]  # [1, B, 1, T, 1]
    per_head = (probabilities * weight).sum(-2) / weight.sum(-2)  # [S, B, heads, L]
    return per_head.mean(2)


def eliminate(block: int, scores: Tensor, positions: Tensor, keep_ratio: float) -> Elimination:
    """Rank the current search tokens; scores and raster positions are [S, B, L]."""
    keep = math.ceil(keep_ratio * scores.shape[-1])
    # Stable and descending: of two equal scores the lower current position wins, on every engine.
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    ranked = positions.gather(-1, order)
    return Elimination(block, scores, order[..., :keep], ranked[..., :keep], ranked[..., keep:])


def keep_tokens(tokens: Tensor, kept_index: Tensor, template_tokens: int) -> Tensor:
    """[S, B, T + L, C] -> [S, B, T + K, C]."""
    index = kept_index.unsqueeze(-1).expand(*kept_index.shape, tokens.shape[-1])
    return torch.cat([tokens[..., :template_tokens, :], tokens[..., template_tokens:, :].gather(-2, index)], dim=-2)


def restore(tokens: Tensor, positions: Tensor, config: ModelConfig) -> Tensor:
    """Put surviving search tokens back to raster order and zeros where tokens were dropped.

    [S, B, T + K, C] and raster positions [S, B, K] -> [S, B, T + search_tokens, C]. Called after the final norm: a
    dropped token is exactly zero, not the norm's bias.
    """
    template_tokens = tokens.shape[-2] - positions.shape[-1]
    template, search = tokens[..., :template_tokens, :], tokens[..., template_tokens:, :]
    index = positions.unsqueeze(-1).expand_as(search)
    full = search.new_zeros(*search.shape[:-2], config.search_tokens, search.shape[-1])
    return torch.cat([template, full.scatter(-2, index, search)], dim=-2)
