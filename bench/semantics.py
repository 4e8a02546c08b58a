"""The kernel tests under ttsem, which executes kernels as Triton's compiler reads them: bounds and races without a GPU.

    sh scripts/check-kernels                # makes the environment that this needs
    sh scripts/check-kernels -k attention   # other arguments go to pytest

Kernels are compiled for a GPU, in its tiles, and executed on the CPU. A test fails at the line of the kernel that reads
or writes outside its tensors, or touches what another program touches, unless the count of programs that have arrived
orders them (`bench/arrivals.py`). Launches do not overlap there, and nothing below Triton's first intermediate form is
seen. Without other arguments the summary goes to bench/results/check-kernels.json.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from common import ROOT, machine, program, write_json
from parity import OPTIONS, Summary, outcomes

TESTS = ("tests/kernels", "--deselect", "tests/kernels/test_compile.py", "-m", "not slow")
UNCHECKED = re.compile(r"ttsem: (\d+) launch\(es\) too large to be checked for races")


def main() -> int:
    _, more = program(__doc__).parse_known_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "outcomes.jsonl"
        command = [sys.executable, "-m", "ttsem.sanitize", "pytest", *TESTS, *OPTIONS, *more]
        command += ["-p", "arrivals", "-p", "parity", "--write-outcomes", str(report)]
        variables = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": f"{ROOT / 'bench'}:{ROOT}"}
        lines = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=variables) as tests:
            for line in tests.stdout or ():
                print(line, end="", flush=True)
                lines.append(line)
        found = list(outcomes(report.parent))
    unchecked = [int(match[1]) for line in lines if (match := UNCHECKED.match(line))]
    if not more:
        about = machine("cpu") | {name: importlib.metadata.version(name) for name in ("ttsem", "triton")}
        counts = asdict(Summary.of([one.test for one in found], found))
        write_json(ROOT / "bench" / "results" / "check-kernels.json", {
            "machine": about, "seconds": round(time.monotonic() - begin), "launches_not_checked_for_races":
            sum(unchecked), **counts,
        })  # fmt: skip
    return tests.returncode or bool(unchecked)


if __name__ == "__main__":
    sys.exit(main())
