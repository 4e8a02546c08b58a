"""The centre head: three towers of convolutions on the search tokens of both modalities."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

SCORE_MARGIN = 1e-4


@dataclass(frozen=True)
class HeadMaps:
    """Maps over the search grid."""

    score: Tensor  # probability that the target's centre lies in the cell [B, 1, g, g], in [1e-4, 1 - 1e-4]
    size: Tensor  # width and height of the target in units of the search crop [B, 2, g, g], clamped alike
    offset: Tensor  # from the cell's corner to the centre, in cells [B, 2, g, g]


class Tower(nn.Sequential):
    """Four times convolution, batch norm, ReLU at halving width, then a 1x1 convolution."""

    def __init__(self, in_channels: int, channels: int, out_channels: int) -> None:
        widths = [in_channels, channels, channels // 2, channels // 4, channels // 8]
        stages: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())
            for before, after in pairwise(widths)
        ]
        super().__init__(*stages, nn.Conv2d(widths[-1], out_channels, 1))


class CenterHead(nn.Module):
    """Score, offset and size towers."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.score = Tower(in_channels, channels, 1)
        self.offset = Tower(in_channels, channels, 2)
        self.size = Tower(in_channels, channels, 2)

    def forward(self, features: Tensor) -> HeadMaps:
        """[B, in_channels, g, g] -> maps."""
        low, high = SCORE_MARGIN, 1 - SCORE_MARGIN
        # In the weights' precision also under autocast: to bfloat16, 1 - 1e-4 is 1, and its loss is infinite.
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.score[0][0].weight.dtype)  # type: ignore[index]
            return HeadMaps(
                score=self.score(features).sigmoid().clamp(low, high),
                size=self.size(features).sigmoid().clamp(low, high),
                offset=self.offset(features),
            )


def search_features(tokens: Tensor, search_tokens: int) -> Tensor:
    """Search tokens of M modalities as an image, channels side by side: [M, B, T + L, C] -> [B, M * C, g, g]."""
    search = tokens[:, :, -search_tokens:]  # [M, B, L, C]
    grid = round(search_tokens**0.5)
    side_by_side = torch.cat(list(search), dim=-1).transpose(1, 2)  # [B, M * C, L]
    return side_by_side.reshape(*side_by_side.shape[:2], grid, grid)
