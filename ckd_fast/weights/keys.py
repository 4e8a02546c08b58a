"""Translates the key names of published files to ours, by pure functions and explicit tables.

Ours                                       the authors'                      OSTrack, DropTrack
rgb.*, tir.*                               rgb_branch.*, tir_branch.*        backbone.* (copied to every branch)
head.{score,offset,size}.{0..4}.*          box_head.conv{1..5}_{ctr,...}.*   box_head.* (first layers doubled)
teacher_{rgb,tir}.branch.*                 teacher_{rgb,tir}.*
teacher_{rgb,tir}.head.*                   box_head_v.*, box_head_i.*
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from ckd_fast.reference.config import ModelConfig

_PREFIXES = {
    "rgb_branch": "rgb",
    "tir_branch": "tir",
    "teacher_rgb": "teacher_rgb.branch",
    "teacher_tir": "teacher_tir.branch",
    "box_head": "head",
    "box_head_v": "teacher_rgb.head",
    "box_head_i": "teacher_tir.head",
}
_BRANCH_NAMES = {
    "pos_embed_z": "pos_embed_template",
    "pos_embed_x": "pos_embed_search",
    "patch_embed.proj.weight": "patch_embed.weight",
    "patch_embed.proj.bias": "patch_embed.bias",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
}
_BLOCK_LAYERS = {
    "norm1": "norm1",
    "attn.qkv": "qkv",
    "attn.proj": "proj",
    "norm2": "norm2",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}
_UNUSED = {"cls_token", "pos_embed"}  # of a classifier; in every published file, never used
_TOWERS = {"ctr": "score", "offset": "offset", "size": "size"}
_BLOCK = re.compile(r"(blocks\.\d+)\.(\w+(?:\.\w+)?)\.(weight|bias)")
_CONV = re.compile(r"conv([1-5])_(ctr|offset|size)\.((?:[01]\.)?\w+)")


def branch_name(name: str) -> str | None:
    """Our name for a weight of a branch; None if we have no such weight."""
    if block := _BLOCK.fullmatch(name):
        layer = _BLOCK_LAYERS.get(block[2])
        return f"{block[1]}.{layer}.{block[3]}" if layer else None
    return _BRANCH_NAMES.get(name)


def head_name(name: str) -> str | None:
    """Our name for a weight of a head; None if we have no such weight."""
    conv = _CONV.fullmatch(name)
    if conv is None or is_unused(name):
        return None
    return f"{_TOWERS[conv[2]]}.{int(conv[1]) - 1}.{conv[3]}"


def is_unused(name: str) -> bool:
    """Whether a published weight can be dropped silently."""
    return name in _UNUSED or name.endswith(".num_batches_tracked")


def from_authors(name: str) -> str | None:
    """Our name for a weight of the authors' checkpoint; None if we have no such weight."""
    prefix, _, rest = name.partition(".")
    if prefix not in _PREFIXES:
        return None
    ours = head_name(rest) if prefix.startswith("box_head") else branch_name(rest)
    return f"{_PREFIXES[prefix]}.{ours}" if ours else None


def looks_like_authors(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of a CKD checkpoint."""
    return any(name.startswith("rgb_branch.") for name in tensors)


def looks_like_ours(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the names that `save_model` writes."""
    return "rgb.patch_embed.weight" in tensors


def looks_like_one_stream(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of a one-branch tracker (OSTrack, DropTrack) or of its pre-training (MAE)."""
    return "backbone.patch_embed.proj.weight" in tensors or "patch_embed.proj.weight" in tensors


def resize_positions(table: Tensor, grid: int, mode: str) -> Tensor:
    """Interpolate a position table of a square grid: [1, n * n, C] -> [1, grid * grid, C]."""
    if table.dim() != 3:
        raise ValueError(f"a position table has shape {tuple(table.shape)}, expected [1, n * n, channels]")
    side = round(table.shape[1] ** 0.5)
    if side * side != table.shape[1]:
        raise ValueError(f"a position table of {table.shape[1]} entries is not square")
    if side == grid:
        return table
    square = table.float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = functional.interpolate(square, size=(grid, grid), mode=mode, align_corners=False)
    return resized.permute(0, 2, 3, 1).flatten(1, 2)


def from_one_stream(tensors: Mapping[str, Tensor], config: ModelConfig) -> tuple[dict[str, Tensor], list[str]]:
    """Initial weights for students and teachers from a one-branch tracker or its pre-training.

    Every branch starts from the same backbone and every head from the same head. The student's head sees both
    modalities, so its first convolutions have their weights twice, not halved. DropTrack's temporal embeddings are
    added to its position tables after resizing. A pre-trained encoder has one table for both crops and no head.

    Returns:
        The weights under our names, and the names that are unknown.
    """
    branch: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    unknown: list[str] = []
    encoder = {name.removeprefix("backbone."): value for name, value in tensors.items() if "box_head." not in name}
    for name, value in encoder.items():
        if ours := branch_name(name):
            branch[ours] = value
        elif not (is_unused(name) or name.startswith(("temporal_pos_embed_", "decoder_", "mask_token"))):
            unknown.append(name)
    if "pos_embed_z" in encoder:
        for crop, ours, grid in (
            ("z", "pos_embed_template", config.template_grid),
            ("x", "pos_embed_search", config.search_grid),
        ):
            if f"pos_embed_{crop}" not in encoder:
                raise ValueError(f"pos_embed_{crop} is missing")
            branch[ours] = resize_positions(encoder[f"pos_embed_{crop}"], grid, "bilinear")
            if f"temporal_pos_embed_{crop}" in encoder:
                branch[ours] = branch[ours] + encoder[f"temporal_pos_embed_{crop}"]
    elif "pos_embed" in encoder:
        table = encoder["pos_embed"]
        if table.dim() != 3:
            raise ValueError(f"pos_embed has shape {tuple(table.shape)}, expected [1, n, channels]")
        if round(table.shape[1] ** 0.5) ** 2 != table.shape[1]:
            table = table[:, 1:]  # drop the class token's entry
        branch["pos_embed_template"] = resize_positions(table, config.template_grid, "bicubic")
        branch["pos_embed_search"] = resize_positions(table, config.search_grid, "bicubic")
    for name, value in tensors.items():
        if name.startswith("box_head."):
            ours = head_name(name.removeprefix("box_head."))
            if ours:
                head[ours] = value
            elif not is_unused(name):
                unknown.append(name)
    result: dict[str, Tensor] = {}
    students = ("rgb",) if config.share_students else ("rgb", "tir")
    for prefix in (*students, "teacher_rgb.branch", "teacher_tir.branch"):
        result |= {f"{prefix}.{name}": value for name, value in branch.items()}
    for name, value in head.items():
        first = name in {f"{tower}.0.0.weight" for tower in _TOWERS.values()}
        if first and value.dim() != 4:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, expected a convolution's")
        result[f"head.{name}"] = torch.cat([value, value], dim=1) if first else value
        result |= {f"teacher_{modality}.head.{name}": value for modality in ("rgb", "tir")}
    return result, unknown
