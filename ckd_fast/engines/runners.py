"""How a frame's launches reach the device: one after the other, or as one captured graph."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial

import torch
from torch import Tensor

from .upload import FrameBuffer

# CUDA allows one capture at a time in a process, whichever engine and thread it is for.
CAPTURING = threading.Lock()
MOST_GRAPHS = 24  # two frame buffers x six numbers of targets, and other kinds of frames; the oldest goes


class Ticket(ABC):
    """A frame on its way."""

    @abstractmethod
    def wait(self) -> list[list[float]]:
        """The rows of the result, when they are there."""


class Runner(ABC):
    """Sends a buffer to the device, runs launches there and brings a small result back."""

    @abstractmethod
    def prepare(self, work: Callable[[], None]) -> None:
        """Run something small on the device, in order with the frames: a lane's new target."""

    @abstractmethod
    def run(self, key: Hashable, buffer: FrameBuffer, work: Callable[[], None], result: Tensor) -> Ticket:
        """Upload, launch, download.

        Args:
            key: the same for the same launches on the same memory.
            buffer: to upload first.
            work: makes the launches.
            result: device tensor [rows, columns] float64 that they write.
        """

    @abstractmethod
    def observe(self, buffer: FrameBuffer, work: Callable[[], None], result: Tensor) -> Ticket:
        """As `run`, launch by launch and awaited, for a caller that looks at values in between."""

    @abstractmethod
    def network(self, key: Hashable, work: Callable[[], None]) -> None:
        """Launches alone, without frames and without waiting."""

    @abstractmethod
    def forget(self) -> None:
        """Let go of memory that was used: it is about to be replaced."""


class _Done(Ticket):
    def __init__(self, rows: list[list[float]]) -> None:
        self._rows = rows

    def wait(self) -> list[list[float]]:
        return self._rows


class PlainRunner(Runner):
    """Launch by launch, awaited; on any device."""

    def prepare(self, work: Callable[[], None]) -> None:
        """See `Runner`."""
        work()

    def run(self, key: Hashable, buffer: FrameBuffer, work: Callable[[], None], result: Tensor) -> Ticket:  # noqa: ARG002
        """See `Runner`."""
        return self.observe(buffer, work, result)

    def observe(self, buffer: FrameBuffer, work: Callable[[], None], result: Tensor) -> Ticket:
        """See `Runner`."""
        buffer.upload()
        work()
        return _Done(result.tolist())

    def network(self, key: Hashable, work: Callable[[], None]) -> None:  # noqa: ARG002
        """See `Runner`."""
        work()

    def forget(self) -> None:
        """See `Runner`; nothing is kept."""


class _Download(Ticket):
    """A result in pinned memory that is there once an event has passed."""

    def __init__(self, host: Tensor, done: torch.cuda.Event) -> None:
        self._host, self._done = host, done
        self._rows: list[list[float]] | None = None
        # The next frame in this memory waits here too, so it cannot overwrite what another thread is reading.
        self._lock = threading.Lock()

    def wait(self) -> list[list[float]]:
        with self._lock:
            if self._rows is None:
                self._done.synchronize()
                self._rows = self._host.tolist()
            return self._rows


def _work_and_download(work: Callable[[], None], result: Tensor, host: Tensor) -> None:
    work()
    host.copy_(result, non_blocking=True)


class GraphRunner(Runner):
    """One CUDA graph per key on a stream of its own; uploads on another, so that they overlap with computation.

    The first run of a key goes launch by launch, which compiles what is not compiled yet; the graph is captured right
    after it. Uploads wait for what the caller's stream still does to frames that lie on the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._compute = torch.cuda.Stream(device)
            self._copy = torch.cuda.Stream(device)
        self._graphs: OrderedDict[Hashable, torch.cuda.CUDAGraph] = OrderedDict()
        self._hosts: dict[Hashable, Tensor] = {}  # where each graph leaves its result

    def prepare(self, work: Callable[[], None]) -> None:
        """See `Runner`."""
        with torch.cuda.device(self._device):
            self._compute.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._compute):
                work()
            torch.cuda.current_stream(self._device).wait_stream(self._compute)

    def run(self, key: Hashable, buffer: FrameBuffer, work: Callable[[], None], result: Tensor) -> Ticket:
        """See `Runner`."""
        with torch.cuda.device(self._device):
            if buffer.from_device:
                self._copy.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._copy):
                buffer.upload()
            self._compute.wait_stream(self._copy)
            with torch.cuda.stream(self._compute):
                host = self._hosts.get(key)
                if host is None:
                    host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
                self._replay(key, partial(_work_and_download, work, result, host))
                self._hosts[key] = host
                done = torch.cuda.Event()
                done.record()
            if buffer.from_device:  # the caller may write to its frames once they are copied
                torch.cuda.current_stream(self._device).wait_stream(self._copy)
        return _Download(host, done)

    def observe(self, buffer: FrameBuffer, work: Callable[[], None], result: Tensor) -> Ticket:
        """See `Runner`."""
        with torch.cuda.device(self._device):
            self._compute.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._compute):
                buffer.upload()
                work()
                rows = result.tolist()
            torch.cuda.current_stream(self._device).wait_stream(self._compute)
        return _Done(rows)

    def network(self, key: Hashable, work: Callable[[], None]) -> None:
        """See `Runner`."""
        with torch.cuda.device(self._device):
            caller = torch.cuda.current_stream(self._device)
            self._compute.wait_stream(caller)
            with torch.cuda.stream(self._compute):
                self._replay(key, work)
            caller.wait_stream(self._compute)

    def forget(self) -> None:
        """See `Runner`."""
        self._compute.synchronize()
        self._graphs.clear()
        self._hosts.clear()

    def _replay(self, key: Hashable, work: Callable[[], None]) -> None:
        """Replay the key's graph, or run the work and capture it for the next time."""
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
            graph.replay()
            return
        work()
        self._compute.synchronize()  # compiled and loaded: nothing of that may happen during a capture
        graph = torch.cuda.CUDAGraph()
        # Other threads of the caller may use the device meanwhile.
        with CAPTURING, torch.cuda.graph(graph, stream=self._compute, capture_error_mode="thread_local"):
            work()
        self._graphs[key] = graph
        while len(self._graphs) > MOST_GRAPHS:
            oldest, _ = self._graphs.popitem(last=False)
            self._hosts.pop(oldest, None)
