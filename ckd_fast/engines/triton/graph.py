"""How the launches of a plan reach the device: one by one, or as one captured graph."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from ckd_fast.kernels.launch import first_line
from ckd_fast.kernels.requirements import launch_errors
from ckd_fast.pending import Pending
from ckd_fast.reference.model import OnStep

from .plan import Plan
from .upload import FrameBuffer

log = logging.getLogger(__name__)

# CUDA allows only one capture at a time in a process, whatever the engine and thread.
CAPTURING = threading.Lock()
MOST_GRAPHS = 24  # two frame buffers, six numbers of targets, two kinds of frames; then the oldest is dropped
ResultRows = list[list[float]]


class Runner(ABC):
    """Sends a buffer to the device, runs a plan there, and fetches its small result."""

    note = ""  # what does not work as it should, for `str(engine)`

    @abstractmethod
    def prepare(self, work: Callable[[], None], *, wait: bool = False) -> None:
        """Run something small on the device, in order with the frames. With `wait`, return when it is done."""

    @abstractmethod
    def run(self, plan: Plan, buffer: FrameBuffer, on_step: OnStep | None = None) -> Pending[ResultRows]:
        """Upload, launch, download. An observed plan runs launch by launch, and this waits for it."""

    @abstractmethod
    def measure(self, plan: Plan) -> None:
        """Run a plan without frames and without waiting."""

    @abstractmethod
    def forget(self) -> None:
        """Drop graphs and results, because the memory that they use is about to be replaced."""


class PlainRunner(Runner):
    """Runs launch by launch and waits; on any device."""

    def prepare(self, work: Callable[[], None], *, wait: bool = False) -> None:
        work()
        if wait and torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()

    def run(self, plan: Plan, buffer: FrameBuffer, on_step: OnStep | None = None) -> Pending[ResultRows]:
        buffer.upload()
        plan.run(on_step)
        return Pending.of(result_of(plan).tolist())

    def measure(self, plan: Plan) -> None:
        plan.run()

    def forget(self) -> None:
        """Nothing is kept."""


class GraphRunner(Runner):
    """One CUDA graph per plan. Graphs run on one stream and uploads on another, so that they overlap.

    A plan first runs launch by launch, which compiles its kernels; then its graph is captured. If that fails, this and
    all later plans without a graph run launch by launch. If frames lie on the device, uploads wait for what the
    caller's stream still does to them.

    Args:
        device: the GPU.
        capture: whether to capture graphs at all.
    """

    def __init__(self, device: torch.device, *, capture: bool = True) -> None:
        self._device = device
        self._capture = capture
        with torch.cuda.device(device):
            self._compute = torch.cuda.Stream(device)
            self._copy = torch.cuda.Stream(device)
        self._graphs: OrderedDict[Plan, torch.cuda.CUDAGraph] = OrderedDict()
        self._reader: torch.cuda.Stream | None = None  # the stream of `measure`'s last caller
        self._results: dict[Plan, Tensor] = {}  # pinned memory, where each graph leaves its result

    def prepare(self, work: Callable[[], None], *, wait: bool = False) -> None:
        with torch.cuda.device(self._device):
            caller = torch.cuda.current_stream(self._device)
            self._compute.wait_stream(caller)
            with torch.cuda.stream(self._compute):
                work()
            caller.wait_stream(self._compute)
            if wait:
                self._compute.synchronize()

    def run(self, plan: Plan, buffer: FrameBuffer, on_step: OnStep | None = None) -> Pending[ResultRows]:
        with torch.cuda.device(self._device):
            caller = torch.cuda.current_stream(self._device)
            if buffer.from_device:
                self._copy.wait_stream(caller)
            try:
                with torch.cuda.stream(self._copy):
                    buffer.upload()
                if buffer.from_device:  # the caller may overwrite its frames only once they are copied
                    caller.wait_stream(self._copy)
                self._compute.wait_stream(self._copy)
                with torch.cuda.stream(self._compute):
                    return self._launch(plan, on_step)
            except Exception:
                with suppress(RuntimeError):  # nobody waits for this frame: its buffer must be free all the same
                    self._copy.synchronize()
                    self._compute.synchronize()
                raise

    def _launch(self, plan: Plan, on_step: OnStep | None) -> Pending[ResultRows]:
        if on_step is not None:
            plan.run(on_step)
            return Pending.of(result_of(plan).tolist())
        result, host = result_of(plan), self._results.get(plan)
        if host is None:
            host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
        self._results[plan] = host  # first: a captured graph writes there for as long as it lives
        self._replay(plan, host)
        done = torch.cuda.Event()
        done.record()
        return Pending(lambda: _downloaded(host, done))

    def measure(self, plan: Plan) -> None:
        with torch.cuda.device(self._device):
            caller = torch.cuda.current_stream(self._device)
            self._compute.wait_stream(caller)
            if self._reader is not None:  # another caller's stream may still read the maps of the last call
                self._compute.wait_stream(self._reader)
            with torch.cuda.stream(self._compute):
                self._replay(plan, None)
            caller.wait_stream(self._compute)
            self._reader = caller

    def forget(self) -> None:
        self._compute.synchronize()
        self._graphs.clear()
        self._results.clear()

    def _replay(self, plan: Plan, host: Tensor | None) -> None:
        """Replay the plan's graph, or run the plan and capture it for the next time."""
        graph = self._graphs.get(plan)
        if graph is not None:
            self._graphs.move_to_end(plan)
            graph.replay()
            return
        _run_and_download(plan, host)
        if not self._capture:
            return
        self._compute.synchronize()  # kernels are compiled and loaded now; neither may happen during a capture
        try:
            graph = torch.cuda.CUDAGraph()
            # "thread_local", because other threads may use the device meanwhile.
            with CAPTURING, torch.cuda.graph(graph, stream=self._compute, capture_error_mode="thread_local"):
                _run_and_download(plan, host)
        except launch_errors() as error:
            self._compute.synchronize()  # raises if the device is lost; else the frame that ran is good
            self._capture = False
            self.note = f"launch by launch, because a graph could not be captured: {first_line(error)}"
            log.warning("engine 'triton' on %s runs %s", self._device, self.note)
            return
        self._graphs[plan] = graph
        while len(self._graphs) > MOST_GRAPHS:
            oldest, _ = self._graphs.popitem(last=False)
            self._results.pop(oldest, None)


def result_of(plan: Plan) -> Tensor:
    if plan.result is None:
        raise ValueError("this plan ends in maps, not in boxes: use `measure`")
    return plan.result


def _run_and_download(plan: Plan, host: Tensor | None) -> None:
    plan.run()
    if host is not None:
        host.copy_(result_of(plan), non_blocking=True)


def _downloaded(host: Tensor, done: torch.cuda.Event) -> ResultRows:
    """Wait for the rows. The next frame in this memory asks for them before it starts, so they are not overwritten."""
    done.synchronize()
    rows: ResultRows = host.tolist()
    return rows
