"""Sequences spread over processes of this machine and its GPUs.

Each worker is a process of its own with a tracker of its own; this one hands out sequences and hears of them. A worker
that dies takes nothing with it: its sequence is tried once more by a new one, then recorded as failed.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from ckd_fast.datasets.sequences import SequenceFiles
from ckd_fast.errors import CkdFastError, EngineError

from .running import Backend, Outcome, Progress, RunPlan, Started, attempt, build_tracker

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


def devices(device: str, workers: int) -> tuple[str, ...]:
    """A device for each worker: "auto" and "cuda" go round all GPUs there are."""
    if device not in ("auto", "cuda"):
        return (device,) * workers
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        return (device,) * workers  # the tracker says what is wrong with "cuda"
    return tuple(f"cuda:{number % count}" for number in range(workers))


def default_workers(device: str) -> int:
    """One per GPU where "auto" or "cuda" finds any, else one."""
    return len(dict.fromkeys(devices(device, MOST_GPUS)))


def local(placed: Sequence[str]) -> Backend:
    """A backend with one worker process per named device."""

    def run(
        sequences: Sequence[SequenceFiles], plan: RunPlan, hear: Callable[[Progress | Outcome | Started], object]
    ) -> None:
        _run(sequences, plan, tuple(placed), hear)

    return run


def _work(connection: Connection, plan: RunPlan, device: str) -> None:
    """A worker's life: build a tracker, then track what it is given until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    logging.getLogger("ckd_fast").setLevel(logging.ERROR)  # what "auto" chose is said once, by the summary
    try:
        try:
            tracker = build_tracker(plan.setup, device)
        except (CkdFastError, RuntimeError, MemoryError) as error:
            connection.send(Broken(str(error) or type(error).__name__))
            return
        connection.send(Started(str(tracker.engine)))
        while True:
            sequence: SequenceFiles = connection.recv()
            outcome = attempt(tracker, sequence, plan, lambda count: connection.send(Progress(count)))
            connection.send(outcome)
            if outcome.details:
                return  # nothing is known of the state that an unexpected error leaves behind, least of all on a GPU
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has ended, or has nothing more


def _start(plan: RunPlan, device: str) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, plan, device), daemon=True)
    process.start()
    theirs.close()  # so that the worker's end is closed when it dies
    return _Worker(process, ours, device)


def _ending(process: SpawnProcess) -> str:
    code = process.exitcode
    if code is None:
        return "ended"
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def _run(
    sequences: Sequence[SequenceFiles],
    plan: RunPlan,
    placed: tuple[str, ...],
    hear: Callable[[Progress | Outcome | Started], object],
) -> None:
    waiting = deque(sequences)
    tries: dict[str, int] = {}
    busy: dict[Connection, SequenceFiles | None] = {}  # None: still building its tracker, or has nothing to do
    workers: dict[Connection, _Worker] = {}

    def add(device: str) -> None:
        worker = _start(plan, device)
        workers[worker.connection] = worker
        busy[worker.connection] = None

    def end(connection: Connection) -> str:
        worker = workers.pop(connection)
        del busy[connection]
        connection.close()
        worker.process.join(PATIENCE_S)
        return worker.device

    def replace(connection: Connection) -> None:
        device = end(connection)
        if waiting:
            add(device)

    def give(connection: Connection) -> None:
        if not waiting:
            end(connection)
            return
        sequence = waiting.popleft()
        tries[sequence.name] = tries.get(sequence.name, 0) + 1
        busy[connection] = sequence
        connection.send(sequence)

    def bury(connection: Connection) -> None:
        worker, sequence = workers.pop(connection), busy.pop(connection)
        connection.close()
        worker.process.join(PATIENCE_S)
        ending = _ending(worker.process)
        if sequence is None:
            raise EngineError(f"a worker on {worker.device} {ending} before it could track anything")
        if tries[sequence.name] < ATTEMPTS:
            waiting.appendleft(sequence)
        else:
            hear(Outcome(sequence.name, failure=f"its worker {ending}, {ATTEMPTS} times"))
        if waiting:
            add(worker.device)

    try:
        for device in placed[: len(waiting)]:
            add(device)
        while workers:
            for ready in wait(list(workers)):
                connection = next(one for one in workers if one is ready)
                # Talking to the worker alone is tried: an error of `hear` is no death of a worker.
                try:
                    message: Progress | Outcome | Started | Broken = connection.recv()
                except (EOFError, ConnectionResetError):
                    bury(connection)
                    continue
                if isinstance(message, Broken):
                    raise EngineError(f"a worker on {workers[connection].device}: {message.reason}")
                hear(message)
                if isinstance(message, Progress):
                    continue
                busy[connection] = None
                if isinstance(message, Outcome) and message.details:
                    replace(connection)
                    continue
                try:
                    give(connection)
                except (BrokenPipeError, ConnectionResetError):
                    bury(connection)
    finally:
        for worker in workers.values():
            worker.process.terminate()
        for worker in workers.values():
            worker.process.join(PATIENCE_S)
