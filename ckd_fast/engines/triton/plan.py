"""One frame as a list of launches: made once, run for every frame.

    crop ─► patch ─► [ qkv ─► attention (─► rank) ─► proj ─► fc1 ─► fc2 ] x depth
         ─► tap products ─► tap sum ─► three convolutions ─► decode

A plan is a tuple of `kernels.launch.Launch` on buffers that never move. Running a frame is a loop over it; so are
capturing it in a graph, observing its steps, tuning, costing and compiling. Only three things change from frame to
frame: the `FrameBuffer`, the state of the pool, and the template tokens in `FrameMemory`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ckd_fast.kernels.attention import DecidingTokens, attention
from ckd_fast.kernels.crop import crop
from ckd_fast.kernels.decode import constants, decode
from ckd_fast.kernels.elimination import decide
from ckd_fast.kernels.head import convolution, last_convolution, sum_taps
from ckd_fast.kernels.launch import ARRIVALS, Launch, LaunchSettings, Operation, Room, TileRequest, dtype_name
from ckd_fast.kernels.layout import Uploaded
from ckd_fast.kernels.linear import Float8Layer, Layer, PlainLayer, Rows, RowStatistics, linear
from ckd_fast.reference.boxes import hann_window
from ckd_fast.reference.config import ModelConfig
from ckd_fast.reference.elimination import template_mask
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.model import OnStep
from ckd_fast.reference.preprocess import PIXEL_MEAN, PIXEL_STD

from .weights import PIXEL_CENTRE, PackedBlock, PackedStudent, tensors_of

BRANCHES = 2
T = TypeVar("T")


@dataclass(frozen=True)
class Build:
    """What all plans of an engine share."""

    config: ModelConfig  # sizes
    packed: PackedStudent  # weights
    # where the network runs, and in which precision; some layers may multiply in float8
    device: torch.device
    dtype: torch.dtype
    settings: LaunchSettings  # of every launch

    @property
    def patch_tile(self) -> int:
        """Columns per tile of the patch embedding's row statistics: one width for all, because template tokens are
        embedded once and then read beside search tokens."""
        config, weight = self.config, self.packed.patch.weight
        name = dtype_name(self.dtype)
        _, features, depth = weight.shape
        request = TileRequest("patch", name, BRANCHES, config.template_tokens, features, depth, statistics=True)
        return self.settings.choose(request).tiles.columns

    def embedded(self, *lead: int) -> Rows:
        """Memory for embedded tokens [*lead, C] and their statistics; zeros, so that empty rows hold no NaN."""
        tiles = -(-self.config.dim // self.patch_tile)
        values = torch.zeros(*lead, tiles, 2, dtype=torch.float32, device=self.device)
        tokens = torch.zeros(*lead, self.config.dim, dtype=self.dtype, device=self.device)
        return Rows(tokens, RowStatistics(values, self.patch_tile))


class Workspace:
    """Buffers by name. Launches that use a buffer at different times share it; it is as large as the largest needs.

    Sizes depend on the tiles, so a plan is made twice: first a rehearsal without memory, which notes the sizes.
    """

    def __init__(self, device: torch.device, needs: Mapping[str, int] | None = None) -> None:
        self.needs: dict[str, int] = dict(needs or {})
        self._memory: Mapping[str, Tensor] | None = None
        if needs is not None:
            self._memory = {name: torch.zeros(size, dtype=torch.uint8, device=device) for name, size in needs.items()}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The front of the named buffer, in this shape."""
        if self._memory is None:
            tensor = torch.empty(shape, dtype=dtype, device="meta")
            self.needs[name] = max(self.needs.get(name, 0), tensor.nbytes)
            return tensor
        size = torch.empty(shape, dtype=dtype, device="meta").nbytes
        return self._memory[name][:size].view(dtype).view(shape)

    @property
    def bytes(self) -> int:
        """Device memory."""
        return sum(self.needs.values())


@dataclass(frozen=True)
class Template:
    """What is kept of a target: embedded tokens [2, 1, T, C], and which of them decide: [1, T] and [1] int32, see
    `DecidingTokens`."""

    rows: Rows
    order: Tensor
    counts: Tensor


@dataclass(frozen=True, eq=False)
class FrameMemory:
    """Memory of the plans for one number of targets that outlives a frame."""

    targets: int  # rows of the batch
    embedded: Rows  # template and search tokens in front of the first block [2, B, T + L, C]
    deciding: DecidingTokens  # template tokens that decide which search tokens are dropped
    cells: Tensor  # cells of all search tokens before any elimination [2, B, L] int32
    token_of_cell: Tensor  # see `kernels.elimination.Decision` [2, B, L] int32
    live: Tensor  # indices of the search tokens that are left after the last block [2, B, live] int32
    window: Tensor  # multiplied with the score map [L]
    fixed: Tensor  # see `kernels.decode.constants`

    @property
    def bytes(self) -> int:
        """Device memory."""
        return sum(tensor.nbytes for tensor in tensors_of(self))


def most_deciding(config: ModelConfig) -> int:
    """How many template tokens of a target decide at most: memory and graphs are made for it."""
    return config.template_tokens if config.template_range == "GT_BOX" else int(template_mask(config).sum())


def frame_memory(build: Build, targets: int, most_deciding: int) -> FrameMemory:
    """Memory for so many targets, each with at most `most_deciding` deciding tokens."""
    config, device = build.config, build.device
    template, search = config.template_tokens, config.search_tokens
    live = config.search_tokens_after(config.depth - 1)

    def counted(start: int, count: int) -> Tensor:
        numbers = torch.arange(start, start + count, dtype=torch.int32, device=device)
        return numbers.expand(BRANCHES, targets, count).contiguous()

    order = torch.full((targets, template), -1, dtype=torch.int32, device=device)
    order[:, 0] = 0  # an empty row of the batch needs a deciding token too
    return FrameMemory(
        targets=targets,
        embedded=build.embedded(BRANCHES, targets, template + search),
        deciding=DecidingTokens(order, torch.ones(targets, dtype=torch.int32, device=device), most_deciding),
        cells=counted(0, search),
        token_of_cell=counted(template, search),
        live=counted(template, live),
        window=hann_window(config.search_grid).flatten().to(device),
        fixed=constants(config.search_factor, device),
    )


def measured_memory(build: Build, targets: int) -> FrameMemory:
    """Memory for the network alone: all template tokens decide, as in the authors' measurement."""
    template = build.config.template_tokens
    memory = frame_memory(build, targets, template)
    memory.deciding.order.copy_(torch.arange(template, dtype=torch.int32, device=build.device).expand(targets, -1))
    memory.deciding.counts.fill_(template)
    return memory


@dataclass(frozen=True)
class Step:
    """A value that can be observed, under a name of `engines.step_names`."""

    name: str
    value: Callable[[], Tensor]


@dataclass(frozen=True, eq=False)
class Plan:
    """A frame's launches."""

    launches: tuple[Launch, ...]  # in order
    # values that can be observed, by the number of launches after which they are there
    steps: Mapping[int, tuple[Step, ...]]
    result: Tensor | None  # where `decode` writes its rows [B, RESULT]; None for the network alone
    maps: Tensor  # where the head writes its maps [B, 3, 2, cells]

    def run(self, on_step: OnStep | None = None) -> None:
        """Send all launches to the current stream."""
        for count, launch in enumerate(self.launches, 1):
            launch.run()
            if on_step is not None:
                for step in self.steps.get(count, ()):
                    on_step(step.name, step.value())

    @property
    def requests(self) -> tuple[TileRequest, ...]:
        """What the launches asked tiles for, without repetitions."""
        return tuple(dict.fromkeys(launch.request for launch in self.launches if launch.request is not None))


@dataclass(frozen=True)
class _Planner:
    """Collects launches in order, under the names of their places in the frame."""

    workspace: Workspace
    launches: list[Launch] = field(default_factory=list)
    steps: dict[int, tuple[Step, ...]] = field(default_factory=dict)

    def room(self, owner: str) -> Room:
        """Buffers of one operation. Operations with the same owner share them; all share the parts of split sums and
        the counts of programs."""

        def take(what: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            name = what if what in ("partial", ARRIVALS) else f"{owner}.{what}"
            return self.workspace.take(name, shape, dtype)

        return take

    def add(self, name: str, operation: Operation[T]) -> T:
        """Add an operation's launches; returns where its result will be."""
        for launch in operation.launches:
            self.launches.append(replace(launch, name=name))
        return operation.out

    def show(self, name: str, value: Callable[[], Tensor]) -> None:
        """Let a value be observed after the launches added so far."""
        self.steps[len(self.launches)] = (*self.steps.get(len(self.launches), ()), Step(name, value))

    def plan(self, maps: Tensor, result: Tensor | None = None) -> Plan:
        """The plan of all launches added."""
        return Plan(tuple(self.launches), self.steps, result, maps)


def plan_frame(build: Build, memory: FrameMemory, workspace: Workspace, uploaded: Uploaded, state: Tensor) -> Plan:
    """From uploaded frames and requests to boxes and the pool's next state."""
    config, settings, planner = build.config, build.settings, _Planner(workspace)
    patches = planner.add(
        "crop",
        crop(
            uploaded, state, size=config.search_size, patch=config.patch_size, dtype=build.dtype,
            room=planner.room("crop"), settings=settings,
        ),
    )  # fmt: skip
    planner.show("crop", partial(_normalised, patches, config))
    maps = _plan_network(planner, build, memory, patches, build.packed.patch, uploaded.present)
    result = planner.add(
        "decode",
        decode(
            maps, memory.window, uploaded, state, memory.fixed, search_size=config.search_size,
            room=planner.room("decode"), settings=settings,
        ),
    )  # fmt: skip
    planner.show("decode", lambda: result[:, :4])
    return planner.plan(maps, result)


@dataclass(frozen=True)
class Crops:
    """Inputs of the network alone: patches [2, B, T or L, 3 P^2], and which modalities are present [2, B] int32."""

    template: Tensor
    search: Tensor
    present: Tensor


def empty_crops(build: Build, targets: int) -> Crops:
    """Room for the inputs of so many targets; both modalities are there."""
    config, device = build.config, build.device

    def patches(tokens: int) -> Tensor:
        return torch.zeros(BRANCHES, targets, tokens, 3 * config.patch_size**2, dtype=build.dtype, device=device)

    present = torch.ones(BRANCHES, targets, dtype=torch.int32, device=device)
    return Crops(patches(config.template_tokens), patches(config.search_tokens), present)


def plan_measured(build: Build, memory: FrameMemory, workspace: Workspace, patch: PlainLayer, crops: Crops) -> Plan:
    """The network alone, to measure it: from patches of normalised crops to maps. The template is embedded too."""
    planner = _Planner(workspace)
    planner.add("template", _embed(build, crops.template, patch, memory.embedded, 0))
    maps = _plan_network(planner, build, memory, crops.search, patch, crops.present)
    return planner.plan(maps)


def plan_template(build: Build, uploaded: Uploaded, state: Tensor, embedded: Rows) -> tuple[Launch, ...]:
    """From uploaded frames and one request to a new target's template tokens [2, 1, T, C]."""
    config = build.config
    cropped = crop(
        uploaded, state, size=config.template_size, patch=config.patch_size, dtype=build.dtype, settings=build.settings
    )
    return (*cropped.launches, *_embed(build, cropped.out, build.packed.patch, embedded, 0).launches)


def _embed(build: Build, patches: Tensor, layer: PlainLayer, embedded: Rows, offset: int) -> Operation[Rows]:
    """Patches to tokens with their positions added; template tokens lie in front of search tokens."""
    packed = build.packed
    positions = packed.search_positions if offset else packed.template_positions
    return linear(
        Rows(patches), layer, residual=positions, into=embedded, out_offset=offset, kernel="patch",
        settings=build.settings,
    )  # fmt: skip


def _plan_network(
    planner: _Planner, build: Build, memory: FrameMemory, patches: Tensor, patch: PlainLayer, present: Tensor
) -> Tensor:
    """From search patches, beside the template tokens in memory, to maps [B, 3, 2, cells]."""
    config, packed, settings = build.config, build.packed, build.settings
    rows = planner.add("patch", _embed(build, patches, patch, memory.embedded, config.template_tokens))
    planner.show("patch_embed", lambda: memory.embedded.tokens)
    positions = memory.cells
    for index, block in enumerate(packed.blocks):
        rows, positions = _plan_block(planner, build, memory, index, block, rows, positions, present)
    products = planner.add(
        "head.tap_products",
        linear(rows, packed.taps, token_index=memory.live, room=planner.room("head.tap_products"), settings=settings),
    )
    cells = planner.add(
        "head.tap_sum",
        sum_taps(
            products.tokens, memory.token_of_cell, packed.taps_bias, template_tokens=config.template_tokens,
            room=planner.room("head.tap_sum"), settings=settings,
        ),
    )  # fmt: skip
    *middle, last = packed.convolutions
    for number, layer in enumerate(middle, 2):
        name = f"head.convolution{number}"
        cells = planner.add(name, convolution(cells, layer, room=planner.room(name), settings=settings))
    maps = planner.add(
        "head.maps", last_convolution(cells, last, packed.maps, room=planner.room("head.maps"), settings=settings)
    )
    planner.show("head.score", lambda: head_maps(maps).score)
    planner.show("head.size", lambda: head_maps(maps).size)
    planner.show("head.offset", lambda: head_maps(maps).offset)
    return maps


def _plan_block(
    planner: _Planner,
    build: Build,
    memory: FrameMemory,
    index: int,
    weights: PackedBlock,
    before: Rows,
    positions: Tensor,
    present: Tensor,
) -> tuple[Rows, Tensor]:
    """One transformer block. Returns its output and the cells of the search tokens that are left."""
    config, settings, room, name = build.config, build.settings, planner.room, f"block{index}"
    eliminates = config.eliminates_at(index)
    qkv = planner.add(f"{name}.qkv", linear(before, weights.qkv, room=room("qkv"), settings=settings)).tokens
    q, k, v = qkv.unflatten(-1, (3, config.heads, config.head_dim)).permute(3, 0, 1, 4, 2, 5)
    attended = planner.add(
        f"{name}.attention",
        attention(
            q, k, v, deciding=memory.deciding if eliminates else None, out_scale=input_scale(weights.proj),
            room=room("attention"), settings=settings,
        ),
    )  # fmt: skip
    kept = None
    if attended.probabilities is not None:
        decision = planner.add(
            f"{name}.rank",
            decide(
                attended.probabilities, memory.deciding, positions, config.search_tokens_after(index),
                elimination="ce" if config.elimination == "ce" else "mce", present=present,
                token_of_cell=memory.token_of_cell, room=room(f"{name}.rank"), settings=settings,
            ),
        )  # fmt: skip
        planner.show(f"{name}.scores", lambda: decision.scores)
        planner.show(f"{name}.eliminate", lambda: decision.kept)
        kept, positions = decision.token_index, decision.kept
    between = planner.add(
        f"{name}.proj",
        linear(
            Rows(attended.tokens), weights.proj, residual=before.tokens, token_index=kept, write_statistics=True,
            room=room("proj"), settings=settings,
        ),
    )  # fmt: skip
    planner.show(f"{name}.attention", lambda: between.tokens)
    hidden = planner.add(
        f"{name}.fc1",
        linear(
            between, weights.fc1, gelu=True, out_scale=input_scale(weights.fc2), room=room("fc1"), settings=settings
        ),
    )  # fmt: skip
    after = planner.add(
        f"{name}.fc2",
        linear(
            hidden, weights.fc2, residual=between.tokens, write_statistics=True, room=room("fc2"), settings=settings
        ),
    )
    planner.show(f"{name}.mlp", lambda: after.tokens)
    return after, positions


def input_scale(layer: Layer) -> Tensor | None:
    """What the kernel in front of a layer in float8 divides by; None where the layer is not in float8."""
    return layer.input_scale if isinstance(layer, Float8Layer) else None


def head_maps(maps: Tensor) -> HeadMaps:
    """The head's maps [B, 3, 2, cells] in the reference's form."""
    grid = round(maps.shape[-1] ** 0.5)
    square = maps.unflatten(-1, (grid, grid))
    return HeadMaps(score=square[:, 0, :1], size=square[:, 2], offset=square[:, 1])


def rehearsed(build: Build, plan: Callable[[Workspace], object]) -> Workspace:
    """A workspace as large as a plan needs."""
    rehearsal = Workspace(build.device)
    plan(rehearsal)
    return Workspace(build.device, rehearsal.needs)


def take_in(memory: FrameMemory, templates: Sequence[Template]) -> None:
    """Put targets into the rows of the batch, in order."""
    tokens, moments = memory.embedded.tokens, memory.embedded.moments
    for place, template in enumerate(templates):
        length = template.rows.tokens.shape[2]
        tokens[:, place : place + 1, :length] = template.rows.tokens
        moments[:, place : place + 1, :length] = template.rows.moments
        memory.deciding.order[place : place + 1] = template.order
        memory.deciding.counts[place : place + 1] = template.counts


def _normalised(patches: Tensor, config: ModelConfig) -> Tensor:
    """The crop kernel's patches as normalised images [2, B, 3, H, W], to compare with the reference."""
    grid, size = config.search_grid, config.patch_size
    images = patches.unflatten(-1, (3, size, size)).unflatten(2, (grid, grid))  # [2, B, g, g, 3, P, P]
    pixels = images.permute(0, 1, 4, 2, 5, 3, 6).flatten(-2).flatten(-3, -2).float() * PIXEL_CENTRE + PIXEL_CENTRE
    mean = torch.tensor(PIXEL_MEAN, device=patches.device)[:, None, None]
    std = torch.tensor(PIXEL_STD, device=patches.device)[:, None, None]
    normalised: Tensor = (pixels / 255 - mean) / std
    return normalised
