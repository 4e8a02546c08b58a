"""Sequences spread over a Ray cluster; needs the extra `cluster`.

Workers track and send back what belongs into the files; the process that was started writes them, so a sequence has one
result however often it was tried. Every node needs ckd_fast, the weights and the frames under the same paths. A worker
that dies, with its node or alone, is replaced, and its sequence tried once more.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ckd_fast.datasets.sequences import SequenceFiles
from ckd_fast.errors import CkdFastError, EngineError

from .running import Backend, Outcome, Progress, RunPlan, Started, attempt, build_tracker
from .workers import ATTEMPTS

LOCAL = "local"
CONNECT_S = 5.0


class TrackingWorker:
    """Builds a tracker where Ray puts it, and tracks what it is given."""

    def __init__(self, plan: RunPlan, device: str) -> None:
        self._plan = plan
        self._tracker = build_tracker(plan.setup, device)

    def engine(self) -> str:
        """What runs."""
        return str(self._tracker.engine)

    def track(self, sequence: SequenceFiles) -> Outcome:
        """One sequence."""
        return attempt(self._tracker, sequence, self._plan)


def on_ray(address: str, device: str, workers: int | None = None) -> Backend:
    """A backend on a Ray cluster.

    Args:
        address: of a cluster, as `ray.init` takes it: "auto", HOST:PORT or ray://HOST:PORT; "local" starts one here.
        device: "auto" takes GPUs where the cluster has any, one for each worker; "cuda" insists; "cpu" takes none.
        workers: how many; None is one per GPU, or per as many CPUs as a worker has threads.
    """

    def run(
        sequences: Sequence[SequenceFiles], plan: RunPlan, hear: Callable[[Progress | Outcome | Started], object]
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise EngineError("--ray needs Ray: pip install 'ckd_fast[cluster]'") from error
        refuse_unreachable(address)
        if ray.is_initialized():
            raise EngineError("this process is connected to a Ray cluster already: call ray.shutdown() first")
        quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if address == LOCAL:
            quiet["include_dashboard"] = False
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise EngineError(f"no Ray cluster at {address!r}: {str(error).splitlines()[0]}") from error
        try:
            _Conversation(ray, sequences, plan, device, workers, hear).run()
        finally:
            ray.shutdown()

    return run


def refuse_unreachable(address: str) -> None:
    """Raise where nobody listens at HOST:PORT; Ray itself would wait for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise EngineError(f"no Ray cluster at {address!r}: {error}; give auto, HOST:PORT or local") from error


class _Conversation:
    """Hands out sequences and hears of them, for the time of one run."""

    def __init__(
        self,
        ray: Any,  # noqa: ANN401  # the module: it is optional and not typed
        sequences: Sequence[SequenceFiles],
        plan: RunPlan,
        device: str,
        workers: int | None,
        hear: Callable[[Progress | Outcome | Started], object],
    ) -> None:
        self._ray, self._plan, self._hear = ray, plan, hear
        self._waiting = deque(sequences)
        self._tries: dict[str, int] = {}
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
        self._count = min(workers or most, most, len(self._waiting))
        # Ray shows each worker its own GPU, under the number 0.
        self._device = "cuda" if use_gpus else "cpu"
        needs = {"num_gpus": 1} if use_gpus else {"num_cpus": threads}
        self._kind = ray.remote(**needs)(TrackingWorker)

    def run(self) -> None:
        """Until every sequence has its outcome."""
        for _ in range(self._count):
            self._start()
        while self._jobs:
            (ready, *_), _ = self._ray.wait(list(self._jobs), num_returns=1)
            worker, sequence = self._jobs.pop(ready)
            try:
                answer = self._ray.get(ready)
            except self._ray.exceptions.RayTaskError as error:
                raise EngineError(f"a worker on the cluster: {_reason(error)}") from error
            except self._ray.exceptions.RayError as error:
                # An actor that died, but also an answer that was lost on its way, or a node out of memory.
                self._ray.kill(worker)
                self._lost(sequence, error)
                continue
            if isinstance(answer, Outcome):
                self._hear(Progress(answer.frames))
                self._hear(answer)
                if answer.details:  # nothing is known of the state that an unexpected error leaves behind
                    self._ray.kill(worker)
                    if self._waiting:
                        self._start()
                    continue
            else:
                self._hear(Started(answer))
            self._give(worker)

    def _start(self) -> None:
        worker = self._kind.remote(self._plan, self._device)
        self._jobs[worker.engine.remote()] = (worker, None)

    def _give(self, worker: Any) -> None:  # noqa: ANN401  # a handle of Ray's
        if self._waiting:
            sequence = self._waiting.popleft()
            self._tries[sequence.name] = self._tries.get(sequence.name, 0) + 1
            self._jobs[worker.track.remote(sequence)] = (worker, sequence)

    def _lost(self, sequence: SequenceFiles | None, error: Exception) -> None:
        """A worker is gone: its sequence goes back, or has failed, and another worker takes its place."""
        if sequence is None:
            raise EngineError(f"a worker on the cluster could not start: {_reason(error)}") from error
        if self._tries[sequence.name] < ATTEMPTS:
            self._waiting.appendleft(sequence)
        else:
            self._hear(Outcome(sequence.name, failure=f"its worker was lost {ATTEMPTS} times: {_reason(error)}"))
        if self._waiting:
            self._start()


def _reason(error: BaseException) -> str:
    """What a worker raised, without Ray's traceback in front of it."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, CkdFastError):
        return str(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
