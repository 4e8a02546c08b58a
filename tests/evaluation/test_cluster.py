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
from checkpoints import SMALL
from support import ROOT

from ckd_fast import EngineError, load_model, save_model
from ckd_fast.cli import main
from ckd_fast.datasets import open_dataset
from ckd_fast.evaluation.cluster import _RayPool, refuse_unreachable
from ckd_fast.evaluation.running import Outcome, RunPlan, TrackerSetup

NAMES = tuple(f"clip{number}" for number in range(6))


@pytest.fixture
def weights(tmp_path: Path) -> str:
    path = tmp_path / "small.safetensors"
    save_model(load_model("random", SMALL, seed=3), path)
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for seed, name in enumerate(NAMES):
        out = tmp_path / "data" / name
        assert main(["sample", str(out), "--frames", "12", "--size", "160x120", "--seed", str(seed)]) == 0
        for folder in ("visible", "infrared"):
            first = sorted((out / folder).iterdir())
            for number in range(13, 120):
                os.link(first[number % 12], first[0].with_name(f"{number:06d}.jpg"))
    return tmp_path / "data"


def command(data: Path, weights: str, out: Path, *more: str) -> list[str]:
    options = ["--dataset", "folder", "--root", str(data), "--weights", weights, "--out", str(out)]
    return ["run", *options, "--engine", "reference", "--device", "cpu", "--quiet", *more]


def results(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.txt") if not path.name.endswith("_time.txt")}


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


def busy_workers(pid: int) -> list[int]:
    """Descendants that track at this moment; Ray names a worker's process after its task."""
    found = []
    for child in descendants(pid):
        try:
            title = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::TrackingWorker.track"):
            found.append(child)
    return found


def test_without_ray_the_error_says_what_to_install(
    data: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(command(data, weights, tmp_path / "out", "--ray", "local")) == 2
    assert "--ray needs Ray: pip install 'ckd_fast[cluster]'" in capsys.readouterr().err


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
def test_a_killed_worker_loses_nothing(
    data: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install 'ckd_fast[cluster]'")
    assert main(command(data, weights, tmp_path / "calm", "--workers", "2")) == 0
    out = tmp_path / "ray"
    arguments = [sys.executable, "-m", "ckd_fast", *command(data, weights, out, "--ray", "local", "--workers", "2")]
    run = subprocess.Popen(
        [*arguments, "--json"], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        killed = 0
        while not killed and run.poll() is None and time.monotonic() < deadline:
            if out.is_dir() and len(results(out)) >= 1:
                for worker in busy_workers(run.pid)[:1]:
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
    capsys.readouterr()
    again = command(data, weights, out, "--json")
    assert main(again) == 0  # without a cluster, the same results: nothing is left to do
    assert json.loads(capsys.readouterr().out)["finished"] == []


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
                engine=SimpleNamespace(remote=lambda: "engine"), track=SimpleNamespace(remote=lambda one: one.name)
            )

        return lambda _kind: SimpleNamespace(remote=start)

    def wait(self, jobs: list[str], num_returns: int) -> tuple[list[str], list[str]]:
        return jobs[:num_returns], jobs[num_returns:]

    def get(self, reference: str) -> object:
        if reference == "engine":
            return "fake"
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
