"""Sizes and choices of a CKD model: one frozen dataclass and its named presets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

Elimination = Literal["mce", "ce", "none"]
TemplateRange = Literal["ALL", "CTR_POINT", "CTR_REC", "GT_BOX"]
LARGEST_FACTOR = 16  # a crop of that many box sides is mostly padding


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of a CKD model; the defaults are the paper's ViT-B model.

    Attributes:
        dim: channels of a token.
        depth: transformer blocks per branch.
        heads: attention heads per block.
        head_channels: channels of the first convolution of the centre head; halved three times after it.
        mlp_ratio: hidden channels of a block's MLP, in multiples of `dim`.
        elimination: which search tokens are dropped. "mce": those that neither modality's template attends to, the same
            in both branches; "ce": each branch decides for itself; "none".
        eliminate_at: blocks (0-based) in which tokens are dropped. Ignored when `elimination` is "none".
        keep_ratio: share of the current search tokens that one elimination keeps, rounded up.
        template_range: template tokens whose attention decides: "ALL", the centre cell "CTR_POINT", the central cells
            "CTR_REC", or the cells under the target's box "GT_BOX".
        template_size: side of the square template crop, in pixels.
        search_size: side of the square search crop, in pixels.
        patch_size: side of a patch, in pixels.
        template_factor: side of the template crop in the frame, in multiples of sqrt(target area).
        search_factor: the same for the search crop.
        share_students: one backbone for both modalities.
    """

    dim: int = 768
    depth: int = 12
    heads: int = 12
    head_channels: int = 256
    mlp_ratio: int = 4
    elimination: Elimination = "mce"
    eliminate_at: tuple[int, ...] = (3, 6, 9)
    keep_ratio: float = 0.7
    template_range: TemplateRange = "CTR_POINT"
    template_size: int = 128
    search_size: int = 256
    patch_size: int = 16
    template_factor: float = 2.0
    search_factor: float = 4.0
    share_students: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.eliminate_at, tuple | list):
            raise ValueError(f"eliminate_at={self.eliminate_at!r}: expected block numbers")  # noqa: TRY004
        object.__setattr__(self, "eliminate_at", tuple(self.eliminate_at))
        sizes = ("dim", "depth", "heads", "head_channels", "mlp_ratio", "template_size", "search_size", "patch_size")
        for name in sizes:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r}: expected a positive whole number")
        if self.dim % self.heads:
            raise ValueError(f"dim={self.dim} is not a multiple of heads={self.heads}")
        if self.head_channels % 8:
            raise ValueError(f"head_channels={self.head_channels} is halved three times: expected a multiple of 8")
        for name in ("template_size", "search_size"):
            if getattr(self, name) % self.patch_size:
                raise ValueError(f"{name}={getattr(self, name)} is not a multiple of patch_size={self.patch_size}")
        for name in ("template_factor", "search_factor"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value <= LARGEST_FACTOR:
                raise ValueError(f"{name}={value!r}: expected a number in (0, {LARGEST_FACTOR}]")
        if not isinstance(self.keep_ratio, int | float) or not 0 < self.keep_ratio <= 1:
            raise ValueError(f"keep_ratio={self.keep_ratio!r}: expected a number in (0, 1]")
        if self.elimination not in get_args(Elimination):
            raise ValueError(f"elimination={self.elimination!r}: known are {', '.join(get_args(Elimination))}")
        if self.template_range not in get_args(TemplateRange):
            raise ValueError(f"template_range={self.template_range!r}: known are {', '.join(get_args(TemplateRange))}")
        blocks = self.eliminate_at
        if any(not isinstance(block, int) or block < 0 for block in blocks) or list(blocks) != sorted(set(blocks)):
            raise ValueError(f"eliminate_at={blocks!r}: expected ascending block numbers from 0")
        if self.elimination != "none" and blocks and blocks[-1] >= self.depth:
            raise ValueError(
                f"eliminate_at={blocks!r} names a block that a model of depth={self.depth} does not have: "
                "name blocks below depth, or set elimination='none'"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.dim // self.heads

    @property
    def template_grid(self) -> int:
        """Template patches along one side."""
        return self.template_size // self.patch_size

    @property
    def search_grid(self) -> int:
        """Search patches along one side; also the side of the head's maps."""
        return self.search_size // self.patch_size

    @property
    def template_tokens(self) -> int:
        """Template tokens per branch."""
        return self.template_grid**2

    @property
    def search_tokens(self) -> int:
        """Search tokens per branch before any elimination."""
        return self.search_grid**2

    @property
    def branches(self) -> int:
        """Distinct student backbones."""
        return 1 if self.share_students else 2

    def eliminates_at(self, block: int) -> bool:
        """Whether search tokens are dropped in this block."""
        return self.elimination != "none" and block in self.eliminate_at

    def search_tokens_after(self, block: int) -> int:
        """Search tokens that leave this block."""
        tokens = self.search_tokens
        for index in range(block + 1):
            if self.eliminates_at(index):
                tokens = math.ceil(self.keep_ratio * tokens)
        return tokens

    def to_dict(self) -> dict[str, object]:
        """Plain values, for metadata."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> ModelConfig:
        """The inverse of `to_dict`; unknown names and wrong types are an error."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        for name, value in values.items():
            if name not in known:
                raise ValueError(f"unknown setting {name!r}: known are {', '.join(known)}")
            default = type(known[name].default)
            accepted: dict[type, tuple[type, ...]] = {float: (int, float), tuple: (list, tuple)}
            if not isinstance(value, accepted.get(default, (default,))) or isinstance(value, bool) != (default is bool):
                raise ValueError(f"{name}={value!r}: expected a value like {known[name].default!r}")
        return cls(**values)  # type: ignore[arg-type]


PRESETS: Mapping[str, ModelConfig] = MappingProxyType(
    {
        "base": ModelConfig(),
        "base-shared": ModelConfig(share_students=True),
        "small": ModelConfig(dim=384, heads=6),
        "tiny": ModelConfig(dim=192, depth=6, heads=3, head_channels=64, eliminate_at=(2, 4)),
    }
)


def preset(name: str) -> ModelConfig:
    """The configuration of this name; an unknown name lists the known ones."""
    if name not in PRESETS:
        raise ValueError(f"unknown model {name!r}: known are {', '.join(PRESETS)}")
    return PRESETS[name]


def preset_name(config: ModelConfig) -> str | None:
    """The name of the preset that equals this configuration, if any."""
    return next((name for name, known in PRESETS.items() if known == config), None)
