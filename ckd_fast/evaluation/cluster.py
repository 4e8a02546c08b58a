"""Sequences spread over a Ray cluster. Needs the extra `cluster`.

Workers track and send results back; only the process that was started writes files, so a sequence has one result
however often it was tried. Every node needs ckd_fast, the weights and the frames under the same paths. A worker that
dies, alone or with its node, is replaced, and its sequence is tried once more.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from ckd_fast.datasets.sequences import SequenceFiles
from ckd_fast.errors import CkdFastError, EngineError

from .running import Backend, OnMessage, Outcome, Progress, RunPlan, Started, attempt, build_tracker
from .workers import ATTEMPTS, SequenceQueue

LOCAL = "local"
CONNECT_S = 5.0


class TrackingWorker:
    """A worker on some node of the cluster."""

    def __init__(self, plan: RunPlan, device: str) -> None:
        self._plan = plan
        self._tracker = build_tracker(plan.setup, device)

    def started(self) -> Started:
        return Started.of(self._tracker)

    def track(self, sequence: SequenceFiles) -> Outcome:
        return attempt(self._tracker, sequence, self._plan)


def on_ray(address: str, device: str, workers: int | None = None) -> Backend:
    """A backend on a Ray cluster.

    Args:
        address: address as for `ray.init`: "auto", HOST:PORT or ray://HOST:PORT; "local" starts a cluster here.
        device: "cuda" gives each worker a GPU, "cpu" none; "auto" uses GPUs if the cluster has any.
        workers: number of workers; None for as many as there are GPUs, or CPUs for the workers' threads.
    """

    def run(sequences: Sequence[SequenceFiles], plan: RunPlan, on_message: OnMessage) -> None:
        try:
            import ray
        except ImportError as error:
            raise EngineError("--ray needs Ray: pip install 'ckd_fast[cluster]'") from error
        refuse_unreachable(address)
        if ray.is_initialized():
            raise EngineError("this process is already connected to a Ray cluster: call ray.shutdown() first")
        quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if address == LOCAL:
            quiet["include_dashboard"] = False
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise EngineError(f"no Ray cluster at {address!r}: {str(error).splitlines()[0]}") from error
        try:
            _RayPool(ray, sequences, plan, device, workers, on_message).run()
        finally:
            ray.shutdown()

    return run


def refuse_unreachable(address: str) -> None:
    """Raise if nobody listens at HOST:PORT; Ray itself would wait for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise EngineError(f"no Ray cluster at {address!r}: {error}; give auto, HOST:PORT or local") from error


class _RayPool:
    def __init__(
        self,
        ray: Any,  # noqa: ANN401  # the module: it is optional and not typed
        sequences: Sequence[SequenceFiles],
        plan: RunPlan,
        device: str,
        workers: int | None,
        on_message: OnMessage,
    ) -> None:
        self._ray, self._plan, self._on_message = ray, plan, on_message
        self._queue = SequenceQueue(sequences)
        self._jobs: dict[Any, tuple[Any, SequenceFiles | None]] = {}  # reference -> worker, sequence (None: starting)
        found = ray.cluster_resources()
        gpus, cpus = int(found.get("GPU", 0)), int(found.get("CPU", 0))
        use_gpus = device.startswith("cuda") or (device == "auto" and gpus > 0)
        if use_gpus and not gpus:
            raise EngineError(f"device={device!r}: the Ray cluster has no GPU")
        threads = plan.setup.threads
        most = gpus if use_gpus else cpus // threads
        if most < 1:
            raise EngineError(f"the Ray cluster has {cpus} CPUs: too few for a worker of {threads} threads")
        self._count = min(workers or most, most, len(self._queue))
        # Ray shows each worker its own GPU, under the number 0.
        self._device = "cuda" if use_gpus else "cpu"
        needs = {"num_gpus": 1} if use_gpus else {"num_cpus": threads}
        self._kind = ray.remote(**needs)(TrackingWorker)

    def run(self) -> None:
        """Return when every sequence has its outcome."""
        for _ in range(self._count):
            self._start_if_needed()
        while self._jobs:
            (ready, *_), _ = self._ray.wait(list(self._jobs), num_returns=1)
            worker, sequence = self._jobs.pop(ready)
            try:
                answer = self._ray.get(ready)
            except self._ray.exceptions.RayTaskError as error:
                raise EngineError(f"a worker on the cluster: {_reason(error)}") from error
            except self._ray.exceptions.RayError as error:
                # The worker died, its answer was lost on the way, or its node ran out of memory.
                if sequence is None:
                    raise EngineError(f"a worker on the cluster could not start: {_reason(error)}") from error
                self._ray.kill(worker)
                if not self._queue.give_back(sequence):
                    failure = f"its worker was lost {ATTEMPTS} times: {_reason(error)}"
                    self._on_message(Outcome(sequence.name, failure=failure))
                self._start_if_needed()
                continue
            if isinstance(answer, Outcome):
                self._on_message(Progress(answer.frames))
                self._on_message(answer)
                if answer.details:  # an unexpected error leaves an unknown state behind
                    self._ray.kill(worker)
                    self._start_if_needed()
                    continue
            else:
                self._on_message(answer)
            if self._queue:
                following = self._queue.take()
                self._jobs[worker.track.remote(following)] = (worker, following)

    def _start_if_needed(self) -> None:
        if self._queue:
            worker = self._kind.remote(self._plan, self._device)
            self._jobs[worker.started.remote()] = (worker, None)


def _reason(error: BaseException) -> str:
    """A worker's error without Ray's traceback."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, CkdFastError):
        return str(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
