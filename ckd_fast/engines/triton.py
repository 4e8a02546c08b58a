"""The fast path: the whole frame, from raw frames to boxes, as our kernels; on a GPU in one captured graph.

The host prepares nothing but bytes: it copies the part of the frames that this call's crops can touch, and boxes, into
pinned memory, replays a graph and reads a few floats. Two frame buffers alternate, so that the next pair is copied
while the network runs on the last one. Between frames a target's box stays on the device too, for callers that do not
wait for it (`Search.box` None).

Targets are put into lanes of a `FrameNetwork`, of which there is one per power of two up to 32; a lane keeps its
target's template tokens until another one comes. Adding, dropping or starting a target anew copies template tokens and
captures nothing.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ckd_fast.errors import CkdFastError, EngineError, InputError
from ckd_fast.frames import RawPair
from ckd_fast.kernels.attention import template_rows
from ckd_fast.kernels.crop import STATE, FrameKind
from ckd_fast.kernels.requirements import launch_errors
from ckd_fast.pending import Pending
from ckd_fast.reference import fused
from ckd_fast.reference.elimination import template_mask
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.model import OnStep, ignore_step
from ckd_fast.reference.track import deciding_tokens
from ckd_fast.types import Box
from ckd_fast.weights import LoadedModel

from .base import Engine, Found, Search, Target
from .network import BRANCHES, Build, Choose, Embedded, FrameNetwork, TemplateNetwork
from .packing import pack, unfolded_patch
from .runners import PlainRunner, Runner, Ticket
from .upload import FrameBuffer, Wanted, kind_of

MOST_TARGETS = 32
BUFFERS = 2


@dataclass
class _Place:
    """The lane that a target is in, if any."""

    network: FrameNetwork | None = None
    lane: int = 0


@dataclass(frozen=True, eq=False)
class TritonSlot(Target):
    """A target of this engine.

    Attributes:
        embedded: template tokens and their statistics.
        slots, count: which of them decide, see `TemplateRows`.
        state: box and factor, while the target is in no lane.
        engine: whose it is.
        place: where it is.
    """

    template: Tensor
    mask: Tensor
    embedded: Embedded
    slots: Tensor
    count: Tensor
    state: Tensor
    engine: weakref.ref[TritonEngine]
    place: _Place = field(default_factory=_Place)


class _Searching:
    def __init__(self, engine: TritonEngine, ticket: Ticket, count: int, started: float, upload_ms: float) -> None:
        self._engine, self._ticket, self._count = engine, ticket, count
        self._started, self._upload_ms = started, upload_ms
        self._found: list[Found] | None = None

    def result(self) -> list[Found]:
        """See `Pending`."""
        if self._found is None:
            rows = self._ticket.wait()[: self._count]
            network_ms = (time.perf_counter() - self._started) * 1e3
            found = [
                Found((x, y, w, h), score, int(cell), 0.0, self._upload_ms, network_ms, 0.0)
                for x, y, w, h, score, cell in rows
            ]
            if any(one.score != one.score for one in found):
                raise self._engine.not_finite()
            self._found = found
        return self._found


@dataclass(frozen=True)
class Memory:
    """Bytes on the device."""

    weights: int
    networks: int
    frames: int


class TritonEngine(Engine):
    """Our kernels.

    Args:
        model: weights.
        device, dtype: where and in which precision; products add up in float32 in each.
        note: what a reader of `str(engine)` should know.
        runner: how launches reach the device.
        choose: tiles of every launch.
        tf32: let float32 products round their factors to tf32.
        overlap: launches begin before the one in front has ended (sm_90 and newer).
    """

    name = "triton"
    carries_boxes = True
    most_targets = MOST_TARGETS

    def __init__(
        self,
        model: LoadedModel,
        device: torch.device,
        dtype: torch.dtype,
        note: str = "",
        *,
        runner: Runner | None = None,
        choose: Choose,
        tf32: bool = False,
        overlap: bool = False,
    ) -> None:
        super().__init__(model, device, dtype, note)
        with torch.inference_mode():
            self._model = model
            self._build = Build(
                model.config, pack(model.student(), device, dtype), device, dtype, choose, tf32=tf32, overlap=overlap
            )
            self._template = TemplateNetwork(self._build)
        self._runner = runner or PlainRunner()
        self._networks: dict[tuple[int, int], FrameNetwork] = {}
        self._occupants: dict[FrameNetwork, list[weakref.ref[TritonSlot] | None]] = {}
        self._buffers: list[FrameBuffer] = []
        self._turn = 0
        # Frames on their way, by buffer, with the targets whose memory the device may still read.
        self._flying: list[tuple[Ticket, list[TritonSlot]] | None] = [None] * BUFFERS
        self._kind = FrameKind()
        self._most = self._most_deciding()
        self._measured: dict[int, _Measured] = {}

    # --- what an engine does -------------------------------------------------------------------------------------

    @torch.inference_mode()
    def make_target(self, frames: RawPair, box: Box) -> Target:
        """See `Engine`."""
        config = self.config
        mask = deciding_tokens(config, box)
        rows = template_rows(mask)
        with self._lock:
            buffer, _ = self._next_buffer(frames)
            self._kind = kind_of(frames, self._kind)
            buffer.fill(frames, [Wanted(box, config.template_factor)], 1)
            embedded: list[Embedded] = []

            def work() -> None:
                buffer.upload()
                embedded.append(self._template.embed_frames(buffer, self._kind))

            with self._launching():
                self._runner.prepare(work)
                if self.device.type == "cuda":
                    # The buffer goes to the next frame, and the tokens to whatever stream asks for them.
                    torch.cuda.synchronize(self.device)
            return TritonSlot(
                template=embedded[0].tokens,
                mask=mask.to(self.device),
                embedded=embedded[0],
                slots=rows.slots.to(self.device),
                count=rows.counts.to(self.device),
                state=self._build.empty(1, STATE, dtype=torch.float64),
                engine=weakref.ref(self),
            )

    @torch.inference_mode()
    def start(self, searches: Sequence[Search], frames: RawPair, on_step: OnStep | None = None) -> Pending[list[Found]]:
        """See `Engine`; observed frames run launch by launch."""
        return Pending(self._start(searches, frames, on_step).result)

    @torch.inference_mode()
    def run_network(self, template_images: Tensor, search_images: Tensor) -> HeadMaps:
        """See `Engine`. The maps are overwritten by the next call."""
        targets = template_images.shape[1]
        with self._lock:
            if targets not in self._measured:  # kept, since a graph refers to its memory
                self._measured[targets] = _Measured(self._build, self._model, targets)
            measured = self._measured[targets]
            with self._launching():
                self._runner.prepare(lambda: measured.take(template_images, search_images))
                self._runner.network(("network", targets), measured.run)
            maps = measured.network.maps.unflatten(-1, (self.config.search_grid,) * 2)
        return HeadMaps(score=maps[:, 0, :1], size=maps[:, 2], offset=maps[:, 1])

    def memory(self) -> Memory:
        """Device memory that this engine holds now."""

        networks = [*self._networks.values(), *(measured.network for measured in self._measured.values())]
        return Memory(
            weights=self._build.packed.bytes,
            networks=sum(network.bytes for network in networks),
            frames=sum(buffer.bytes for buffer in self._buffers),
        )

    # --- how -----------------------------------------------------------------------------------------------------

    def _most_deciding(self) -> int:
        """The largest number of template tokens that decide: memory and graphs are made for it."""
        config = self.config
        if config.template_range == "GT_BOX":
            return config.template_tokens
        return int(template_mask(config).sum())

    def _start(self, searches: Sequence[Search], frames: RawPair, on_step: OnStep | None) -> _Searching:
        if not 0 < len(searches) <= MOST_TARGETS:
            raise ValueError(f"{len(searches)} targets in one call: expected 1 to {MOST_TARGETS}")
        slots = [self._own(search.target) for search in searches]
        if len(set(map(id, slots))) < len(slots):
            raise ValueError("a target stands in one call twice: search for it once per frame")
        started = time.perf_counter()
        with self._lock:
            lanes = 1 << (len(searches) - 1).bit_length()
            network = self._network(lanes)
            buffer, turn = self._next_buffer(frames)
            self._kind = kind = kind_of(frames, self._kind)
            self._assign(network, slots)
            wanted = [Wanted(s.box, s.factor, s.lost_threshold, s.lost_scale) for s in searches]
            buffer.fill(frames, wanted, lanes)
            uploaded = time.perf_counter()

            def work() -> None:
                network.run(buffer, kind, on_step or ignore_step)

            with self._launching():
                if on_step is None:
                    ticket = self._runner.run((lanes, turn, kind), buffer, work, network.result)
                else:
                    ticket = self._runner.observe(buffer, work, network.result)
            self._flying[turn] = (ticket, slots)
        return _Searching(self, ticket, len(searches), uploaded, (uploaded - started) * 1e3)

    @contextmanager
    def _launching(self) -> Iterator[None]:
        """Errors of the device as errors of the engine."""
        try:
            yield
        except CkdFastError:
            raise
        except launch_errors() as error:
            lines = str(error).strip().splitlines()
            reason = lines[0] if lines else type(error).__name__
            raise EngineError(f"engine {self} could not run: {reason}") from error

    def _own(self, slot: Target) -> TritonSlot:
        if not isinstance(slot, TritonSlot) or slot.engine() is not self:
            raise InputError("this target belongs to another engine: call init on a tracker of this one")
        return slot

    def _network(self, lanes: int) -> FrameNetwork:
        if (lanes, self._most) not in self._networks:
            network = FrameNetwork(self._build, lanes, self._most)
            self._networks[lanes, self._most] = network
            self._occupants[network] = [None] * lanes
        return self._networks[lanes, self._most]

    def _next_buffer(self, frames: RawPair) -> tuple[FrameBuffer, int]:
        """The buffer whose turn it is, free and large enough."""
        self._turn = turn = (self._turn + 1) % BUFFERS
        self._land(turn)
        (height, width), (tir_height, tir_width) = frames.form.rgb_size, frames.form.tir_size
        need = (height * width * 3, tir_height * tir_width * 3 * (1 if frames.form.tir_range is None else 2))
        if not self._buffers or any(n > has for n, has in zip(need, self._buffers[0].capacity, strict=True)):
            for other in range(BUFFERS):
                self._land(other)
            self._runner.forget()
            had = self._buffers[0].capacity if self._buffers else (0, 0)
            rgb_bytes, tir_bytes = (max(n, h) for n, h in zip(need, had, strict=True))
            self._buffers = [FrameBuffer(rgb_bytes, tir_bytes, MOST_TARGETS, self.device) for _ in range(BUFFERS)]
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # cleared before another stream writes to it
        return self._buffers[turn], turn

    def _land(self, turn: int) -> None:
        """Fetch the result of the frame in a buffer; the buffer may be used anew."""
        flying = self._flying[turn]
        if flying is not None:
            flying[0].wait()
            self._flying[turn] = None

    def _assign(self, network: FrameNetwork, slots: Sequence[TritonSlot]) -> None:
        """Put targets into lanes; who is there already costs nothing.

        Targets of other lanes leave: decoding writes to every lane, and their box must not be lost.
        """
        occupants = self._occupants[network]
        moves: list[Callable[[], None]] = []

        def leave(slot: TritonSlot) -> None:
            place = slot.place
            if place.network is None:
                return
            moves.append(partial(_leave, place.network, place.lane, slot))
            self._occupants[place.network][place.lane] = None
            place.network = None

        for lane in range(network.targets):
            here = occupants[lane]
            old = here() if here is not None else None
            new = slots[lane] if lane < len(slots) else None
            if old is new:
                continue
            if old is not None:
                leave(old)
            if new is not None:
                leave(new)
                moves.append(partial(_enter, network, lane, new))
                new.place.network, new.place.lane = network, lane
                occupants[lane] = weakref.ref(new)
        if not moves:
            return
        try:
            with self._launching():
                self._runner.prepare(lambda: _run_all(moves))
        except EngineError:
            for slot in slots:  # nobody knows what is where: everything is copied again next time
                slot.place.network = None
            occupants[:] = [None] * network.targets
            raise


def _run_all(moves: Sequence[Callable[[], None]]) -> None:
    for move in moves:
        move()


def _leave(network: FrameNetwork, lane: int, slot: TritonSlot) -> None:
    """Keep a target's box and factor."""
    slot.state.copy_(network.state[lane : lane + 1])


def _enter(network: FrameNetwork, lane: int, slot: TritonSlot) -> None:
    """Copy what belongs to a target into its lane."""
    template = slot.template.shape[2]
    network.tokens[:, lane : lane + 1, :template] = slot.template
    network.statistics.values[:, lane : lane + 1, :template] = slot.embedded.statistics.values
    network.rows.slots[lane : lane + 1] = slot.slots
    network.rows.counts[lane : lane + 1] = slot.count
    network.state[lane : lane + 1] = slot.state


class _Measured:
    """The network alone on normalised crops, for measuring: templates are embedded anew and all their tokens decide."""

    def __init__(self, build: Build, model: LoadedModel, targets: int) -> None:
        config = build.config
        self._build = build
        self._layer = unfolded_patch(model.student(), build.device, build.dtype)
        values = 3 * config.patch_size**2
        self._patches = build.empty(BRANCHES, targets, config.template_tokens, values)
        self._present = torch.ones(BRANCHES, targets, dtype=torch.int32, device=build.device)
        self.network = FrameNetwork(build, targets, config.template_tokens)
        slots = torch.arange(config.template_tokens, dtype=torch.int32, device=build.device)
        self.network.rows.slots.copy_(slots.expand(targets, -1))
        self.network.rows.counts.fill_(config.template_tokens)

    def take(self, template_images: Tensor, search_images: Tensor) -> None:
        """Lay crops out as patches; part of what is measured, as a convolution does the same inside."""
        self._patches.copy_(fused.patches(template_images, self._build.config.patch_size))
        self.network.patches.copy_(fused.patches(search_images, self._build.config.patch_size))

    def run(self) -> None:
        """All launches."""
        self.network.embed_template(self._patches, self._layer)
        self.network.find(self._present, self._layer)
