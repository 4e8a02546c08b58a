"""Sequences spread over processes of this machine and its GPUs.

Each worker is a process with its own tracker; this process hands out sequences and receives messages. If a worker dies,
a new one tries its sequence once more; after that the sequence has failed.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from ckd_fast.datasets.sequences import SequenceFiles
from ckd_fast.errors import CkdFastError, EngineError
from ckd_fast.weights.exported import is_exported

from .running import Backend, Message, OnMessage, Outcome, Progress, RunPlan, Started, attempt, build_tracker

ATTEMPTS = 2
PATIENCE_S = 5.0
MOST_GPUS = 64


@dataclass(frozen=True)
class Broken:
    """A worker could not build its tracker."""

    reason: str


@dataclass(frozen=True)
class _Worker:
    process: SpawnProcess
    connection: Connection
    device: str


class SequenceQueue:
    """Sequences that wait for a worker. A sequence whose worker died waits again, until its attempts are used up."""

    def __init__(self, sequences: Sequence[SequenceFiles]) -> None:
        self._waiting = deque(sequences)
        self._attempts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> SequenceFiles:
        sequence = self._waiting.popleft()
        self._attempts[sequence.name] += 1
        return sequence

    def give_back(self, sequence: SequenceFiles) -> bool:
        """Try a sequence again; False if its attempts are used up."""
        if self._attempts[sequence.name] >= ATTEMPTS:
            return False
        self._waiting.appendleft(sequence)
        return True


def devices(device: str, workers: int, weights: str | os.PathLike[str] | None = None) -> tuple[str, ...]:
    """A device for each worker; "auto" and "cuda" use all GPUs in turn.

    For exported weights "auto" stays: whether torch sees a GPU does not say what ONNX Runtime can use.
    """
    if device not in ("auto", "cuda") or (device == "auto" and is_exported(weights)):
        return (device,) * workers
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        return (device,) * workers  # the tracker explains what is wrong with "cuda"
    return tuple(f"cuda:{number % count}" for number in range(workers))


def default_workers(device: str, weights: str | os.PathLike[str] | None = None) -> int:
    """One per GPU that "auto" or "cuda" finds, else one."""
    return len(dict.fromkeys(devices(device, MOST_GPUS, weights)))


def local(worker_devices: Sequence[str]) -> Backend:
    """A backend with one worker process per device named."""

    def run(sequences: Sequence[SequenceFiles], plan: RunPlan, on_message: OnMessage) -> None:
        _Pool(sequences, plan, on_message).run(worker_devices)

    return run


def _work(connection: Connection, plan: RunPlan, device: str) -> None:
    """A worker's life: build a tracker, then track sequences until the parent closes its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    logging.getLogger("ckd_fast").setLevel(logging.ERROR)  # the summary names the engine that "auto" chose
    try:
        try:
            tracker = build_tracker(plan.setup, device)
        except (CkdFastError, RuntimeError, MemoryError) as error:
            connection.send(Broken(str(error) or type(error).__name__))
            return
        connection.send(Started.of(tracker))
        while True:
            sequence: SequenceFiles = connection.recv()
            outcome = attempt(tracker, sequence, plan, lambda count: connection.send(Progress(count)))
            connection.send(outcome)
            if outcome.details:
                return  # an unexpected error leaves an unknown state behind, above all on a GPU
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has ended, or has no more sequences


def _start(plan: RunPlan, device: str) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    parent_end, worker_end = context.Pipe()
    process = context.Process(target=_work, args=(worker_end, plan, device), daemon=True)
    process.start()
    worker_end.close()  # the worker has the only copy, so the pipe closes when it dies
    return _Worker(process, parent_end, device)


class _Pool:
    def __init__(self, sequences: Sequence[SequenceFiles], plan: RunPlan, on_message: OnMessage) -> None:
        self._queue, self._plan, self._on_message = SequenceQueue(sequences), plan, on_message
        self._workers: dict[Connection, _Worker] = {}
        self._tracked: dict[Connection, SequenceFiles] = {}  # what each worker is tracking

    def run(self, worker_devices: Sequence[str]) -> None:
        """Return when every sequence has its outcome."""
        try:
            for device in worker_devices[: len(self._queue)]:
                self._add_if_needed(device)
            while self._workers:
                ready = wait(list(self._workers))
                for connection in [connection for connection in self._workers if connection in ready]:
                    self._receive(connection)
        finally:
            for worker in self._workers.values():
                worker.process.terminate()
            for worker in self._workers.values():
                worker.process.join(PATIENCE_S)

    def _receive(self, connection: Connection) -> None:
        # Only the exchange with the worker is tried: an error of `on_message` does not mean that the worker died.
        try:
            message: Message | Broken = connection.recv()
        except (EOFError, ConnectionResetError):
            self._replace_dead(connection)
            return
        if isinstance(message, Broken):
            raise EngineError(f"a worker on {self._workers[connection].device}: {message.reason}")
        self._on_message(message)
        if isinstance(message, Progress):
            return
        self._tracked.pop(connection, None)
        if isinstance(message, Outcome) and message.details:
            self._add_if_needed(self._remove(connection).device)
        elif not self._queue:
            self._remove(connection)
        else:
            self._tracked[connection] = self._queue.take()
            try:
                connection.send(self._tracked[connection])
            except (BrokenPipeError, ConnectionResetError):
                self._replace_dead(connection)

    def _add_if_needed(self, device: str) -> None:
        if self._queue:
            worker = _start(self._plan, device)
            self._workers[worker.connection] = worker

    def _remove(self, connection: Connection) -> _Worker:
        worker = self._workers.pop(connection)
        connection.close()
        worker.process.join(PATIENCE_S)
        return worker

    def _replace_dead(self, connection: Connection) -> None:
        """Give a dead worker's sequence back and replace the worker."""
        sequence = self._tracked.pop(connection, None)
        retried = sequence is not None and self._queue.give_back(sequence)
        worker = self._remove(connection)
        code = worker.process.exitcode
        cause = "ended" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            cause = f"was killed by signal {-code}"
        if sequence is None:
            raise EngineError(f"a worker on {worker.device} {cause} before it could track anything")
        if not retried:
            self._on_message(Outcome(sequence.name, failure=f"its worker {cause}, {ATTEMPTS} times"))
        self._add_if_needed(worker.device)
