"""One frame as a sequence of kernel launches on buffers that never move: what a graph captures.

    crop ─► patch ─► [ qkv ─► attention (─► decide) ─► proj ─► fc1 ─► fc2 ] x depth
         ─► taps ─► gather ─► three convolutions ─► decode

Every tensor is made once, here. A launch reads and writes nothing else, so that a captured frame can be replayed for
ever; what changes from frame to frame lies in the `FrameBuffer`, in `state` and in the lanes' template tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ckd_fast.kernels.attention import TemplateRows, attention
from ckd_fast.kernels.crop import STATE, FrameKind, crop
from ckd_fast.kernels.decode import RESULT, constants, decode
from ckd_fast.kernels.elimination import Decision, decide, new_decision
from ckd_fast.kernels.head import TOWERS, WIDEST_MAP, convolution, gather_taps, last_convolution
from ckd_fast.kernels.linear import FoldedLinear, RowStatistics, linear
from ckd_fast.kernels.tiles import GATHER_TILES, Choice, Work
from ckd_fast.reference.boxes import hann_window
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.model import OnStep, ignore_step
from ckd_fast.reference.preprocess import PIXEL_MEAN, PIXEL_STD

from .packing import PIXEL_CENTRE, PackedBlock, PackedStudent, PlainLinear, tensors_of
from .upload import FrameBuffer

Choose = Callable[[Work], Choice]
BRANCHES = 2


@dataclass(frozen=True)
class Build:
    """What all networks of an engine have in common.

    Attributes:
        config: sizes.
        packed: weights.
        device, dtype: where and in which precision.
        choose: tiles for every launch.
        tf32: let float32 products round their factors to tf32.
        overlap: launches begin before the one in front has ended.
    """

    config: ModelConfig
    packed: PackedStudent
    device: torch.device
    dtype: torch.dtype
    choose: Choose
    tf32: bool
    overlap: bool

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A buffer; zeros, so that a lane without a target computes with numbers."""
        return torch.zeros(shape, dtype=dtype or self.dtype, device=self.device)

    @property
    def patch(self) -> Choice:
        """Tiles of the patch embedding. One choice for all, and no split: search tokens lie behind template tokens that
        were embedded once, and the statistics of both are in the same tiles."""
        return replace(self.layer(self.config.search_tokens, self.packed.patch.weight), split_k=1)

    def layer(self, rows: int, weight: Tensor) -> Choice:
        """Tiles of a linear layer on so many rows."""
        _, features, depth = weight.shape
        name = str(self.dtype).removeprefix("torch.")
        return self.choose(Work("linear", name, BRANCHES, rows, features, depth))

    def statistics(self, targets: int, tokens: int, choice: Choice) -> RowStatistics:
        """Room for the row statistics that a layer with these tiles writes."""
        tiles = -(-self.config.dim // choice.tiles.columns)
        values = self.empty(BRANCHES, targets, tokens, tiles, 2, dtype=torch.float32)
        return RowStatistics(values, choice.tiles.columns)


@dataclass(frozen=True)
class Embedded:
    """Template tokens of one target as the first block reads them.

    Attributes:
        tokens: [2, 1, T, C].
        statistics: of their rows.
    """

    tokens: Tensor
    statistics: RowStatistics


class TemplateNetwork:
    """From frames and a box to the template tokens of a new target."""

    def __init__(self, build: Build) -> None:
        config = build.config
        self._build = build
        self._state = build.empty(1, STATE, dtype=torch.float64)
        self._patches = build.empty(BRANCHES, 1, config.template_tokens, 3 * config.patch_size**2)

    def embed_frames(self, buffer: FrameBuffer, kind: FrameKind) -> Embedded:
        """The template crop around the buffer's first box, embedded."""
        build, config, packed = self._build, self._build.config, self._build.packed
        crop(
            buffer.rgb, buffer.tir(kind), buffer.geometry, buffer.given(1), self._state, buffer.present(1),
            self._patches, kind=kind, size=config.template_size, patch=config.patch_size,
        )  # fmt: skip
        tokens = build.empty(BRANCHES, 1, config.template_tokens, config.dim)
        statistics = build.statistics(1, config.template_tokens, build.patch)
        linear(
            self._patches, packed.patch.weight, packed.patch.bias, residual=packed.template_positions, out=tokens,
            out_statistics=statistics, tiles=build.patch.tiles, tf32=build.tf32,
        )  # fmt: skip
        return Embedded(tokens, statistics)


@dataclass(frozen=True)
class _Half:
    """A block's input or output: tokens [2, B, N, C] and the statistics of their rows."""

    tokens: Tensor
    statistics: RowStatistics


@dataclass(frozen=True)
class _BlockPlan:
    """Buffers and tiles of one block.

    Attributes:
        before, between, after: the tokens in front of the block, behind its attention, behind its MLP.
        qkv, attended, hidden: what lies between.
        decision, probabilities: where tokens are dropped.
        tiles: of qkv, attention, proj, fc1, fc2.
    """

    before: _Half
    between: _Half
    after: _Half
    qkv: Tensor
    attended: Tensor
    hidden: Tensor
    decision: Decision | None
    probabilities: Tensor | None
    tiles: tuple[Choice, Choice, Choice, Choice, Choice]


class FrameNetwork:
    """Buffers and launches for B targets.

    Args:
        build: weights, sizes, tiles.
        targets: B, the number of lanes.
        most: the largest number of template tokens that decide for one target.
    """

    def __init__(self, build: Build, targets: int, most: int) -> None:
        config, empty = build.config, build.empty
        self.build = build
        self.targets = targets
        template, search, dim = config.template_tokens, config.search_tokens, config.dim
        # Written by the lanes' owner.
        self.tokens = empty(BRANCHES, targets, template + search, dim)
        self.statistics = build.statistics(targets, template + search, build.patch)
        self.rows = TemplateRows(
            torch.full((targets, template), -1, dtype=torch.int32, device=build.device),
            torch.ones(targets, dtype=torch.int32, device=build.device),
            most,
        )
        self.rows.slots[:, 0] = 0  # a lane without a target has something to decide with
        self.state = empty(targets, STATE, dtype=torch.float64)
        # Ours.
        self._partial = build.empty(0, dtype=torch.float32)  # grows while the launches are planned
        self.patches = empty(BRANCHES, targets, search, 3 * config.patch_size**2)
        self._place = torch.arange(template, template + search, dtype=torch.int32, device=build.device)
        self._place = self._place.expand(BRANCHES, targets, search).contiguous()
        self._first_positions = (self._place - template).contiguous()
        self._blocks = self._plan_blocks(most)
        self._tap_rows, self._products, self._tap_tiles = self._plan_taps()
        width = TOWERS * config.head_channels
        self._maps_in = [empty(targets, search, width // share) for share in (1, 2, 4)]
        self.maps = empty(targets, TOWERS, WIDEST_MAP, search, dtype=torch.float32)
        self.result = empty(targets, RESULT, dtype=torch.float64)
        self._window = hann_window(config.search_grid).flatten().to(build.device)
        self._fixed = constants(config.search_factor, build.device)

    def _layer(self, tokens: int, weight: Tensor) -> Choice:
        """Tiles of a layer on so many tokens of every target; makes room for the parts of its sums."""
        choice = self.build.layer(self.targets * tokens, weight)
        room = choice.split_k * BRANCHES * self.targets * tokens * weight.shape[1] if choice.split_k > 1 else 0
        if room > self._partial.numel():
            self._partial = self.build.empty(room, dtype=torch.float32)
        return choice

    def _plan_blocks(self, most: int) -> list[_BlockPlan]:
        build, config, targets = self.build, self.build.config, self.targets
        template, dim = config.template_tokens, config.dim
        longest = template + config.search_tokens
        # Blocks follow each other, so they share their buffers; a shorter sequence uses the front of them.
        pool = {
            name: build.empty(BRANCHES * targets * longest * width)
            for name, width in (
                ("between", dim),
                ("after", dim),
                ("qkv", 3 * dim),
                ("attended", dim),
                ("hidden", config.mlp_ratio * dim),
            )
        }

        def view(name: str, tokens: int, width: int) -> Tensor:
            return pool[name][: BRANCHES * targets * tokens * width].view(BRANCHES, targets, tokens, width)

        plans = []
        before = _Half(self.tokens, self.statistics)
        tokens = longest
        name = str(build.dtype).removeprefix("torch.")
        for index, weights in enumerate(build.packed.blocks):
            current = tokens
            decision = probabilities = None
            if config.eliminates_at(index):
                search = current - template
                keep = config.search_tokens_after(index)
                probabilities = build.empty(BRANCHES, targets, config.heads, most, search, dtype=torch.float32)
                decision = new_decision(self._place, search=search, keep=keep, template=template)
                tokens = template + keep
            qkv = self._layer(current, weights.qkv.weight)
            heads = Work("attention", name, BRANCHES * targets * config.heads, current, current, config.head_dim)
            proj = self._layer(tokens, weights.proj.weight)
            fc1 = self._layer(tokens, weights.fc1.weight)
            fc2 = self._layer(tokens, weights.fc2.weight)
            between = _Half(view("between", tokens, dim), build.statistics(targets, tokens, proj))
            after = _Half(view("after", tokens, dim), build.statistics(targets, tokens, fc2))
            plans.append(
                _BlockPlan(
                    before,
                    between,
                    after,
                    view("qkv", current, 3 * dim),
                    view("attended", current, dim),
                    view("hidden", tokens, config.mlp_ratio * dim),
                    decision,
                    probabilities,
                    (qkv, build.choose(heads), proj, fc1, fc2),
                )
            )
            before = after
        return plans

    def _plan_taps(self) -> tuple[Tensor, Tensor, Choice]:
        build, template = self.build, self.build.config.template_tokens
        live = self._blocks[-1].after.tokens.shape[2] - template
        rows = torch.arange(template, template + live, dtype=torch.int32, device=build.device)
        choice = self._layer(live, build.packed.taps.weight)
        products = build.empty(BRANCHES, self.targets, live, build.packed.taps.weight.shape[1])
        return rows.expand(BRANCHES, self.targets, live).contiguous(), products, choice

    def run(self, buffer: FrameBuffer, kind: FrameKind, on_step: OnStep = ignore_step) -> None:
        """Launch the whole frame: from the buffer's frames and boxes to `result` and the next `state`."""
        build, config = self.build, self.build.config
        tiles = build.choose(
            Work("crop", "float32", BRANCHES * self.targets, config.search_size, config.search_size, 1)
        ).tiles  # fmt: skip
        given, present = buffer.given(self.targets), buffer.present(self.targets)
        crop(
            buffer.rgb, buffer.tir(kind), buffer.geometry, given, self.state, present, self.patches, kind=kind,
            size=config.search_size, patch=config.patch_size, tile_rows=tiles.rows, tile_columns=tiles.columns,
            warps=tiles.warps,
        )  # fmt: skip
        if on_step is not ignore_step:
            on_step("crop", _normalised(self.patches, config))
        self.find(present, build.packed.patch, on_step)
        decode(
            self.maps, self._window, buffer.geometry, given, self.state, self._fixed, self.result,
            search_size=config.search_size, overlap=build.overlap,
        )  # fmt: skip
        on_step("decode", self.result[:, :4])

    def _linear(
        self,
        x: _Half | Tensor,
        layer: FoldedLinear | PlainLinear,
        choice: Choice,
        out: Tensor,
        **more: Any,  # noqa: ANN401
    ) -> None:
        """One layer; with the norm in front of it where one is folded into it."""
        norm = layer if isinstance(layer, FoldedLinear) else None
        linear(
            x.tokens if isinstance(x, _Half) else x, layer.weight, layer.bias, norm=norm,
            statistics=x.statistics if isinstance(x, _Half) else None, out=out, split_k=choice.split_k,
            partial=self._partial, tiles=choice.tiles, tf32=self.build.tf32, overlap=self.build.overlap, **more,
        )  # fmt: skip

    def embed_template(self, patches: Tensor, layer: PlainLinear) -> None:
        """Launch the embedding of template patches [2, B, T, 3 P^2] into all lanes."""
        positions = self.build.packed.template_positions
        self._linear(
            patches, layer, self.build.patch, self.tokens, residual=positions, out_statistics=self.statistics
        )  # fmt: skip

    @property
    def bytes(self) -> int:
        """Device memory of the buffers."""
        tensors = tensors_of(tuple(value for name, value in vars(self).items() if name != "build"))
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())

    def find(self, present: Tensor, patch: PlainLinear, on_step: OnStep = ignore_step) -> None:
        """Launch the network: from `patches` and the lanes' template tokens to `maps`."""
        build, packed, template = self.build, self.build.packed, self.build.config.template_tokens
        self._linear(
            self.patches, patch, build.patch, self.tokens, residual=packed.search_positions, out_offset=template,
            out_statistics=self.statistics,
        )  # fmt: skip
        on_step("patch_embed", self.tokens)
        positions = self._first_positions
        for index, (plan, weights) in enumerate(zip(self._blocks, packed.blocks, strict=True)):
            self._run_block(plan, weights, present, positions, f"block{index}", on_step)
            if plan.decision is not None:
                positions = plan.decision.kept
        self._linear(self._blocks[-1].after, packed.taps, self._tap_tiles, self._products, rows=self._tap_rows)
        self._run_head()
        grid = build.config.search_grid
        if on_step is not ignore_step:
            square = self.maps.unflatten(-1, (grid, grid))
            on_step("head.score", square[:, 0, :1])
            on_step("head.size", square[:, 2])
            on_step("head.offset", square[:, 1])

    def _run_block(
        self, plan: _BlockPlan, weights: PackedBlock, present: Tensor, positions: Tensor, name: str, on_step: OnStep
    ) -> None:
        build, config = self.build, self.build.config
        qkv, heads, proj, fc1, fc2 = plan.tiles

        self._linear(plan.before, weights.qkv, qkv, plan.qkv)
        split = plan.qkv.unflatten(-1, (3, config.heads, config.head_dim)).permute(3, 0, 1, 4, 2, 5)
        decision, probabilities = plan.decision, plan.probabilities
        attention(
            split[0], split[1], split[2], out=plan.attended, rows=self.rows if decision else None,
            probabilities=probabilities, template_tokens=config.template_tokens, tile_rows=heads.tiles.rows,
            tile_keys=heads.tiles.columns, warps=heads.tiles.warps, stages=heads.tiles.stages, tf32=build.tf32,
            overlap=build.overlap,
        )  # fmt: skip
        kept = None
        if decision is not None and probabilities is not None:
            decide(
                probabilities, self.rows, positions, decision.kept.shape[2],
                elimination="mce" if config.elimination == "mce" else "ce", present=present, place=self._place,
                out=decision, overlap=build.overlap,
            )  # fmt: skip
            on_step(f"{name}.scores", decision.scores)
            on_step(f"{name}.eliminate", decision.kept)
            kept = decision.rows
        self._linear(
            plan.attended, weights.proj, proj, plan.between.tokens, residual=plan.before.tokens, rows=kept,
            out_statistics=plan.between.statistics,
        )  # fmt: skip
        on_step(f"{name}.attention", plan.between.tokens)
        self._linear(plan.between, weights.fc1, fc1, plan.hidden, gelu=True)
        self._linear(
            plan.hidden, weights.fc2, fc2, plan.after.tokens, residual=plan.between.tokens,
            out_statistics=plan.after.statistics,
        )  # fmt: skip
        on_step(f"{name}.mlp", plan.after.tokens)

    def _run_head(self) -> None:
        build, packed, targets = self.build, self.build.packed, self.targets
        overlap = build.overlap
        gather_taps(
            self._products, self._place, packed.taps_bias, template_tokens=build.config.template_tokens,
            out=self._maps_in[0], tile_cells=GATHER_TILES.rows, tile_features=GATHER_TILES.columns, overlap=overlap,
        )  # fmt: skip
        name = str(build.dtype).removeprefix("torch.")

        def tiles(layer: PlainLinear, *, last: bool = False) -> Choice:
            _, features, taps, channels = layer.weight.shape
            kernel = "last_convolution" if last else "convolution"
            cells = self.maps.shape[-1]
            return build.choose(Work(kernel, name, TOWERS * targets, cells, features, taps * channels))  # type: ignore[arg-type]

        *middle, fourth = packed.convolutions
        for number, layer in enumerate(middle):
            convolution(
                self._maps_in[number], layer.weight, layer.bias, out=self._maps_in[number + 1],
                tiles=tiles(layer).tiles, tf32=build.tf32, overlap=overlap,
            )  # fmt: skip
        last_convolution(
            self._maps_in[2], fourth.weight, fourth.bias, packed.map_weight, packed.map_bias, maps=self.maps,
            tiles=tiles(fourth, last=True).tiles, tf32=build.tf32, overlap=overlap,
        )  # fmt: skip


def _normalised(patches: Tensor, config: ModelConfig) -> Tensor:
    """What the crop kernel wrote as the images that `reference` normalises, for comparing [2, B, 3, H, W]."""
    grid, size = config.search_grid, config.patch_size
    images = patches.unflatten(-1, (3, size, size)).unflatten(2, (grid, grid))  # [2, B, g, g, 3, P, P]
    pixels = images.permute(0, 1, 4, 2, 5, 3, 6).flatten(-2).flatten(-3, -2).float() * PIXEL_CENTRE + PIXEL_CENTRE
    mean = torch.tensor(PIXEL_MEAN, device=patches.device)[:, None, None]
    std = torch.tensor(PIXEL_STD, device=patches.device)[:, None, None]
    normalised: Tensor = (pixels / 255 - mean) / std
    return normalised
