"""The same run on a Ray cluster: a local one with two workers, one of which is killed midway."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import Command, by_module, called, descendants, looped, results, tracking_run
from support import ROOT

from ckd_fast import EngineError
from ckd_fast.datasets import open_dataset
from ckd_fast.evaluation.cluster import _RayPool, refuse_unreachable
from ckd_fast.evaluation.running import Outcome, RunPlan, Started, TrackerSetup

NAMES = tuple(f"clip{number}" for number in range(6))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for seed, name in enumerate(NAMES):
        looped(tmp_path / "data" / name, 119, seed)
    return tmp_path / "data"


def test_without_ray_the_error_says_what_to_install(
    data: Path, weights: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    told = command(*tracking_run(data, weights, tmp_path / "out", "--ray", "local"))
    assert told.refuses("--ray needs Ray: pip install 'ckd_fast[cluster]'")


def test_an_address_where_nobody_listens_ends_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        refuse_unreachable(f"127.0.0.1:{port}")
    refuse_unreachable("auto")  # Ray's to find
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "127.0.0.1:99999"):
        with pytest.raises(EngineError, match=f"no Ray cluster at '{address}'"):
            refuse_unreachable(address)


@pytest.mark.integration
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_a_killed_worker_loses_nothing(data: Path, weights: str, tmp_path: Path, command: Command) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install 'ckd_fast[cluster]'")
    assert command(*tracking_run(data, weights, tmp_path / "calm", "--workers", "2")).code == 0
    out = tmp_path / "ray"
    run = subprocess.Popen(
        by_module(*tracking_run(data, weights, out, "--ray", "local", "--workers", "2", "--json")),
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        killed = 0
        while not killed and run.poll() is None and time.monotonic() < deadline:
            if out.is_dir() and len(results(out)) >= 1:
                # Those that track at this moment; Ray names a worker's process after its task.
                for worker in called(descendants(run.pid), b"ray::TrackingWorker.track")[:1]:
                    os.kill(worker, signal.SIGKILL)
                    killed = worker
            time.sleep(0.01)
        printed, errors = run.communicate(timeout=120)
    finally:
        run.kill()
    assert killed, f"no worker was found at work: {errors}"
    assert run.returncode == 0, errors
    summary = json.loads(printed.splitlines()[-1])
    assert sorted(summary["finished"]) == sorted(NAMES)  # each once
    assert (summary["failed"], summary["kept"]) == ({}, [])
    assert summary["frames"] == 119 * len(NAMES)
    assert len(summary["engines"]) == 1
    assert results(out) == results(tmp_path / "calm")
    again = command(*tracking_run(data, weights, out, "--json"))  # without a cluster, the same results
    assert (again.code, again.json["finished"]) == (0, [])


class FakeRay:
    """Answers as it is told to, in order."""

    class exceptions:  # noqa: N801  # a module of Ray's
        RayError = type("RayError", (Exception,), {})
        RayActorError = type("RayActorError", (RayError,), {})
        RayTaskError = type("RayTaskError", (RayError,), {})

    def __init__(self, answers: list[object]) -> None:
        self.answers, self.started, self.killed = answers, 0, 0

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1}

    def remote(self, **_needs: object) -> Callable[[type], object]:
        def start(*_arguments: object) -> object:
            self.started += 1
            return SimpleNamespace(
                started=SimpleNamespace(remote=lambda: "starting"), track=SimpleNamespace(remote=lambda one: one.name)
            )

        return lambda _kind: SimpleNamespace(remote=start)

    def wait(self, jobs: list[str], num_returns: int) -> tuple[list[str], list[str]]:
        return jobs[:num_returns], jobs[num_returns:]

    def get(self, reference: str) -> object:
        if reference == "starting":
            return Started("fake on cpu", "fake")
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, _worker: object) -> None:
        self.killed += 1


def test_whatever_ray_loses_is_tried_again(data: Path, weights: str) -> None:
    sequences = open_dataset("folder", data).sequences[:2]
    lost, dead = FakeRay.exceptions.RayError("object lost"), FakeRay.exceptions.RayActorError("dead")
    broken = Outcome(sequences[0].name, failure="ZeroDivisionError", details="a traceback")
    ray = FakeRay([lost, broken, dead, Outcome(sequences[1].name, "1,2,3,4\n", "1\n", 1)])
    heard: list[object] = []
    _RayPool(ray, sequences, RunPlan(TrackerSetup(weights)), "cpu", 1, heard.append).run()
    assert [(one.sequence, one.failure) for one in heard if isinstance(one, Outcome)] == [
        (sequences[0].name, "ZeroDivisionError"),
        (sequences[1].name, ""),
    ]
    assert (ray.started, ray.killed) == (4, 3)
