"""The fast path: our kernels do the whole frame, from raw frames to boxes; on a GPU as one captured graph.

The host only moves bytes: it copies requests, and the part of the frames that the crops can touch, into pinned memory,
replays a graph, and reads a few floats. Two frame buffers alternate, so the next pair is copied while the network works
on the last one. A target's box also stays on the device, for callers that search on without waiting for it
(`Search.box` is None).

Targets live in a pool. The targets of a call fill the rows of a batch. There is a batch for each power of two up to 32;
it keeps the template tokens until other targets come. Starting or dropping a target captures no graph.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch

from ckd_fast.engines.base import FRAMES_IN_FLIGHT, Engine, Found, Search, Target
from ckd_fast.errors import CkdFastError, EngineError, InputError
from ckd_fast.frames import RawPair
from ckd_fast.kernels.attention import deciding_tokens
from ckd_fast.kernels.launch import LaunchSettings, first_line, run_all
from ckd_fast.kernels.layout import FrameKind
from ckd_fast.kernels.requirements import launch_errors
from ckd_fast.pending import Pending
from ckd_fast.reference import track, twins
from ckd_fast.reference.head import HeadMaps
from ckd_fast.reference.model import OnStep
from ckd_fast.types import Box
from ckd_fast.weights import LoadedModel

from .graph import PlainRunner, ResultRows, Runner
from .plan import (
    Build,
    Crops,
    FrameMemory,
    Plan,
    Workspace,
    empty_crops,
    frame_memory,
    head_maps,
    measured_memory,
    most_deciding,
    plan_frame,
    plan_measured,
    plan_template,
    rehearsed,
    take_in,
)
from .pool import PooledTarget, TargetPool
from .upload import FrameBuffer, kind_of
from .weights import pack, unfolded_patch

MOST_TARGETS = 32


@dataclass
class _Batch:
    """Memory for so many targets, the numbers of those in it, and its plans by frame buffer and kind of frames."""

    memory: FrameMemory
    workspace: Workspace
    holds: tuple[int, ...] = ()
    plans: dict[tuple[int, FrameKind], Plan] = field(default_factory=dict)


@dataclass(frozen=True)
class _Measured:
    """Memory and plan of the network alone."""

    crops: Crops
    memory: FrameMemory
    workspace: Workspace
    plan: Plan


@dataclass(frozen=True)
class Memory:
    """Bytes of device memory, by use."""

    weights: int
    targets: int
    batches: int
    frames: int


class TritonEngine(Engine):
    """Our kernels.

    Args:
        model: weights.
        device, dtype: where it runs, and in which precision. Products are summed in float32 in every precision. With
            float8 (weights with a calibration) qkv, proj, fc1 and fc2 multiply in it, and the rest is bfloat16.
        note: shown by `str(engine)`.
        runner: how launches reach the device.
        settings: tiles, tf32 and overlap of every launch.
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
        settings: LaunchSettings,
        runner: Runner | None = None,
    ) -> None:
        super().__init__(model, device, dtype, note)
        self._model = model
        calibration = None
        if dtype == torch.float8_e4m3fn:
            calibration = model.calibration
            if calibration is None:
                raise InputError(
                    "dtype='float8': these weights carry no calibration; ckd-fast quantize --weights FILE --out OUT "
                    "adds it"
                )
        self._wide = torch.bfloat16 if calibration else dtype  # of all that is not float8
        self._runner = runner or PlainRunner()

        def allocate() -> None:
            packed = pack(model.student(), device, self._wide, calibration)
            self._build = Build(model.config, packed, device, self._wide, settings)
            self._pool = TargetPool(self._build, self._owner)

        with torch.inference_mode():
            self._runner.prepare(allocate, wait=True)
        self._batches: dict[int, _Batch] = {}
        self._measured: dict[int, _Measured] = {}
        self._buffers: list[FrameBuffer] = []
        self._turn = 0
        self._flying: list[Pending[ResultRows] | None] = [None] * FRAMES_IN_FLIGHT  # by buffer
        self._kind = FrameKind()

    @property
    def notes(self) -> tuple[str, ...]:
        return self.note, self._runner.note

    @torch.inference_mode()
    def make_target(self, frames: RawPair, box: Box) -> Target:
        deciding = deciding_tokens(track.deciding_tokens(self.config, box))
        with self._lock, self._launching():
            buffer, _ = self._next_buffer(frames)
            self._kind = kind = kind_of(frames, self._kind)
            if self._pool.full:
                self._land_all()
                self._forget_plans()  # they point to the pool's old state
                self._runner.prepare(self._pool.grow, wait=True)
            target = self._pool.add()
            search = Search(target, box, self.config.template_factor)
            buffer.fill(frames, [search], [target.row], 1)

            def embed() -> None:
                buffer.upload()
                uploaded, template = buffer.uploaded(1, kind), self._pool.template(target)
                run_all(plan_template(self._build, uploaded, self._pool.state, template.rows))
                template.order.copy_(deciding.order)
                template.counts.copy_(deciding.counts)

            self._runner.prepare(embed, wait=True)  # the next frame will overwrite the buffer
            return target

    @torch.inference_mode()
    def start(self, searches: Sequence[Search], frames: RawPair, on_step: OnStep | None = None) -> Pending[list[Found]]:
        self.check(searches)
        targets = [search.target for search in searches if isinstance(search.target, PooledTarget)]
        started = time.perf_counter()
        with self._lock, self._launching():
            buffer, turn = self._next_buffer(frames)
            self._kind = kind = kind_of(frames, self._kind)
            batch = self._batch(1 << (len(targets) - 1).bit_length())
            buffer.fill(frames, searches, [target.row for target in targets], batch.memory.targets)
            filled = time.perf_counter()
            self._hold(batch, targets)
            rows = self._runner.run(self._plan(batch, buffer, turn, kind), buffer, on_step)
            self._flying[turn] = rows
        return Pending(partial(self._found, rows, len(targets), filled, (filled - started) * 1e3))

    @torch.inference_mode()
    def run_network(self, template_images: torch.Tensor, search_images: torch.Tensor) -> HeadMaps:
        """The maps are overwritten by the next call."""
        targets, patch = template_images.shape[1], self.config.patch_size
        with self._lock, self._launching():

            def lay_out() -> None:
                if targets not in self._measured:
                    self._measured[targets] = self._measure(targets)
                # This is measured too, because the reference's convolution does the same inside.
                crops = self._measured[targets].crops
                crops.template.copy_(twins.patches(template_images, patch))
                crops.search.copy_(twins.patches(search_images, patch))

            self._runner.prepare(lay_out)
            self._runner.measure(self._measured[targets].plan)
        return head_maps(self._measured[targets].plan.maps)

    def memory(self) -> Memory:
        """Device memory that this engine uses now."""
        batches: tuple[_Batch | _Measured, ...] = (*self._batches.values(), *self._measured.values())
        return Memory(
            weights=self._build.packed.bytes,
            targets=self._pool.bytes,
            batches=sum(batch.workspace.bytes + batch.memory.bytes for batch in batches),
            frames=sum(buffer.bytes for buffer in self._buffers),
        )

    def _measure(self, targets: int) -> _Measured:
        """The network alone, on normalised crops."""
        patch = unfolded_patch(self._model.student(), self.device, self._wide)
        crops, memory = empty_crops(self._build, targets), measured_memory(self._build, targets)

        def plan(workspace: Workspace) -> Plan:
            return plan_measured(self._build, memory, workspace, patch, crops)

        workspace = rehearsed(self._build, plan)
        return _Measured(crops, memory, workspace, plan(workspace))

    def _batch(self, targets: int) -> _Batch:
        if targets not in self._batches:
            uploaded = self._buffers[0].uploaded(targets, FrameKind())

            def allocate() -> None:
                memory = frame_memory(self._build, targets, most_deciding(self.config))
                workspace = rehearsed(
                    self._build, lambda room: plan_frame(self._build, memory, room, uploaded, self._pool.state)
                )
                self._batches[targets] = _Batch(memory, workspace)

            self._runner.prepare(allocate, wait=True)
        return self._batches[targets]

    def _plan(self, batch: _Batch, buffer: FrameBuffer, turn: int, kind: FrameKind) -> Plan:
        if (turn, kind) not in batch.plans:
            uploaded = buffer.uploaded(batch.memory.targets, kind)
            batch.plans[turn, kind] = plan_frame(self._build, batch.memory, batch.workspace, uploaded, self._pool.state)
        return batch.plans[turn, kind]

    def _hold(self, batch: _Batch, targets: Sequence[PooledTarget]) -> None:
        """Bring these targets' template tokens into the batch. If they are in it already, this costs nothing."""
        numbers = tuple(target.number for target in targets)
        if batch.holds == numbers:
            return
        batch.holds = ()  # if copying fails, the batch holds nothing that we know
        self._runner.prepare(partial(take_in, batch.memory, [self._pool.template(target) for target in targets]))
        batch.holds = numbers

    def _found(self, rows: Pending[ResultRows], count: int, started: float, upload_ms: float) -> list[Found]:
        with self._launching():
            values = rows.result()[:count]
        network_ms = (time.perf_counter() - started) * 1e3
        found = [
            Found((x, y, w, h), score, int(cell), 0.0, upload_ms, network_ms, 0.0) for x, y, w, h, score, cell in values
        ]
        if any(target.score != target.score for target in found):
            raise self.not_finite()
        return found

    @contextmanager
    def _launching(self) -> Iterator[None]:
        """Turn errors of the device into errors of the engine."""
        try:
            yield
        except CkdFastError:
            raise
        except launch_errors() as error:
            raise EngineError(f"engine {self} could not run: {first_line(error)}") from error

    def _next_buffer(self, frames: RawPair) -> tuple[FrameBuffer, int]:
        """The buffer whose turn it is, free and large enough, and its number."""
        self._turn = turn = (self._turn + 1) % FRAMES_IN_FLIGHT
        self._land(turn)
        (height, width), (tir_height, tir_width) = frames.form.rgb_size, frames.form.tir_size
        need = (height * width * 3, tir_height * tir_width * 3 * (1 if frames.form.tir_range is None else 2))
        had = self._buffers[0].capacity if self._buffers else (0, 0)
        if any(n > h for n, h in zip(need, had, strict=True)):
            self._land_all()
            self._forget_plans()
            rgb_bytes, tir_bytes = (max(n, h) for n, h in zip(need, had, strict=True))

            def allocate() -> None:
                self._buffers = [
                    FrameBuffer(rgb_bytes, tir_bytes, MOST_TARGETS, self.device) for _ in range(FRAMES_IN_FLIGHT)
                ]

            self._runner.prepare(allocate, wait=True)  # zeroed before another stream writes to it
        return self._buffers[turn], turn

    def _forget_plans(self) -> None:
        self._runner.forget()
        for batch in self._batches.values():
            batch.plans.clear()

    def _land(self, turn: int) -> None:
        """Wait for the frame in a buffer, so that the buffer can be used again."""
        flying = self._flying[turn]
        if flying is not None:
            try:
                flying.result()
            except Exception:
                self._flying[turn] = None  # but not when interrupted: the device still works on it
                raise
            self._flying[turn] = None

    def _land_all(self) -> None:
        for turn in range(FRAMES_IN_FLIGHT):
            self._land(turn)
