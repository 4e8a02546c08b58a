"""The tests of kernels and engine, spread over processes; each result is written when its test ends.

    python bench/parity.py --json out/parity.json

Most of the time of a test on a GPU is compiling, so processes help, one for every core. The authors' track must be
there (folder `golden` in CKD_FAST_SHARED, by default .shared in the checkout where it exists): its test counts as
failed if it is skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import ROOT, add_gpu_options, gpu_or_rehearsal, machine, program, save_json, used

TESTS = ("tests/kernels", "tests/engines/test_triton.py", "tests/engines/test_upload.py")
REHEARSED = ("tests/kernels/test_decode.py",)
MUST_RUN = "test_the_authors_track"
TRACK = (f"tests/engines/test_triton.py::{MUST_RUN}",)
OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist")


@dataclass(frozen=True)
class Outcome:
    """Of one test."""

    test: str
    outcome: str  # passed, failed, skipped
    seconds: float
    said: str  # why it failed or was skipped


def collected(tests: tuple[str, ...], marks: str = "not slow") -> list[str]:
    """All tests with these marks, by pytest's names for them."""
    command = [sys.executable, "-m", "pytest", *tests, *OPTIONS, "-m", marks, "--collect-only"]
    command += ["--deselect", "tests/kernels/test_compile.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    found = [line for line in done.stdout.splitlines() if "::" in line and not line.startswith(("ERROR", "FAILED"))]
    if done.returncode or not found:
        raise RuntimeError(f"pytest found no tests: {done.stdout[-2000:]} {done.stderr[-2000:]}")
    return found


def outcomes(folder: Path) -> Iterator[Outcome]:
    """What the processes have written so far; a line that is not whole yet is left for later."""
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text().split("\n")[:-1]:
            yield Outcome(**json.loads(line))


@dataclass(frozen=True)
class Summary:
    """Counts, and all that is not a plain pass."""

    tests: int
    passed: int
    failed: int
    skipped: int
    not_run: int
    must_not_be_skipped: list[str]  # but were
    rows: list[Outcome]  # that did not pass
    slowest: list[Outcome]

    @classmethod
    def of(cls, tests: list[str], found: list[Outcome]) -> Summary:
        passed, failed, skipped = (
            [one for one in found if one.outcome == kind] for kind in ("passed", "failed", "skipped")
        )
        missed = [one.test for one in skipped if MUST_RUN in one.test]
        slowest = sorted(found, key=lambda one: -one.seconds)[:10]
        rows = [one for one in found if one.outcome != "passed"]
        counts = len(tests), len(passed), len(failed), len(skipped), len(tests) - len(found)
        return cls(*counts, missed, rows, slowest)

    @property
    def good(self) -> bool:
        return not (self.failed or self.not_run or self.must_not_be_skipped)


def main() -> int:
    parser = program(__doc__)
    most = max(1, (os.cpu_count() or 1) - 2)
    parser.add_argument("--processes", type=int, default=most, help=f"(default here: {most})")
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "parity.json", metavar="FILE")
    add_gpu_options(parser)
    options = parser.parse_args()
    gpu_or_rehearsal(options)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'bench'}:{os.environ.get('PYTHONPATH', ROOT)}"}
    if (ROOT / ".shared").exists():
        environment.setdefault("CKD_FAST_SHARED", str(ROOT / ".shared"))
    begin = time.monotonic()
    # On a GPU the whole of the authors' track is quick.
    tests = collected(REHEARSED)[-3:] if options.rehearse else collected(TESTS) + collected(TRACK, "slow")
    print(f"{len(tests)} tests in {options.processes} processes", flush=True)
    about = {"machine": machine("cpu" if options.rehearse else "cuda"), "arguments": used(options)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        running = {number: start(part, folder / f"{number}.jsonl", environment) for number in range(options.processes)
                   if (part := tests[number :: options.processes])}  # fmt: skip
        while True:
            over = all(process.poll() is not None for process in running.values())
            found = list(outcomes(folder))
            save_json(options.json, {**about, **asdict(Summary.of(tests, found))})
            if over:
                break
            time.sleep(1)
        for number, process in running.items():
            if process.returncode not in (0, 1):  # all passed, some failed
                lines = (folder / f"{number}.log").read_text(errors="replace").splitlines()
                print(f"process {number} ended with code {process.returncode}:", *lines[-20:], sep="\n")
    told = Summary.of(tests, found)
    for one in found:
        if one.outcome == "failed":
            print(f"FAILED {one.test}\n{one.said}\n")
    for missed in told.must_not_be_skipped:
        print(f"SKIPPED, which counts as failed: {missed}")
    counts = f"{told.passed} passed, {told.failed} failed, {told.skipped} skipped, {told.not_run} not run"
    print(f"{counts} in {time.monotonic() - begin:.0f} s")
    return 0 if told.good else 1


def start(tests: list[str], report: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A process of pytest with this file as its plugin."""
    command = [sys.executable, "-m", "pytest", *tests, *OPTIONS, "-p", "parity", "--write-outcomes", str(report)]
    with report.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


class Recorder:
    """A pytest plugin that writes a line for each test that ends."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            said = "" if report.outcome == "passed" else str(report.longreprtext)[-4000:]
            row = Outcome(report.nodeid, report.outcome, round(report.duration, 2), said)
            with self._path.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--write-outcomes", type=Path, help="a line of JSON for each test that ends")


def pytest_configure(config: Any) -> None:
    path = config.getoption("--write-outcomes")
    if path is not None:
        config.pluginmanager.register(Recorder(path))


if __name__ == "__main__":
    sys.exit(main())
