"""How long engine openvino takes to start, and how much memory: without the cache, into an empty one, and from it.

    python bench/start.py --model base --json out/start.json
    python bench/start.py --model packaged --dtype bfloat16

Each start is a process of its own. Its time is that of `load_model`, from a safetensors file that was read before, and
of building the engine; importing torch comes before it. Memory is the process's peak. Of it, `file_mb` are pages of the
weights and of the cache that the system can take back. They and `private_mb` are read when the engine is ready.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from common import machine, percentiles, program, refuse, used, write_json

CHILD = """
import json, sys, time
import torch
begin = time.perf_counter()
from ckd_fast import load_model
from ckd_fast.engines import build_engine
model = load_model(sys.argv[1])
loaded = time.perf_counter()
engine = build_engine("openvino", model, "cpu", sys.argv[2])
ready = time.perf_counter()
lines = [line.split() for line in open("/proc/self/status")]
memory = {line[0]: int(line[1]) / 1024 for line in lines if line[0] in ("VmHWM:", "RssAnon:", "RssFile:")}
memory = [memory[name] for name in ("VmHWM:", "RssAnon:", "RssFile:")]
print(json.dumps([str(engine), loaded - begin, ready - begin, *memory]))
"""


@dataclass(frozen=True)
class Start:
    """One start: seconds until the weights are loaded and until the engine is ready; memory in MiB."""

    cache: str  # "off", "empty" or "filled"
    engine: str
    load_s: float
    ready_s: float
    peak_mb: float
    private_mb: float
    file_mb: float


def start(cache: str, folder: str, weights: Path, dtype: str) -> Start:
    root = Path(__file__).resolve().parent.parent
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"CKD_FAST_CACHE": folder, "PYTHONPATH": path}
    command = [sys.executable, "-c", CHILD, str(weights), dtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        refuse((done.stderr.strip().splitlines() or [f"a start ended with exit code {done.returncode}"])[-1])
    return Start(cache, *json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("--model", default="base", help='preset, or "packaged" (default: base)')
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: float32)")
    parser.add_argument("--turns", type=int, default=5, help="(default: 5)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not Path("/proc/self/status").exists():
        refuse("reads memory from /proc, which this system does not have")
    from ckd_fast import CkdFastError, load_model, save_model

    starts = []
    with tempfile.TemporaryDirectory() as temporary:
        weights = Path(temporary) / "weights.safetensors"
        try:
            packaged = options.model == "packaged"
            save_model(load_model(None if packaged else "random", None if packaged else options.model), weights)
        except CkdFastError as error:
            refuse(error)
        for turn in range(options.turns):
            folder = str(Path(temporary) / f"cache-{turn}")
            for cache, place in (("off", "off"), ("empty", folder), ("filled", folder)):
                starts.append(start(cache, place, weights, options.dtype))
            for entry in Path(folder).iterdir():
                entry.unlink()
    print(f"{options.model}: {starts[0].engine}\n")
    print(f"{'cache':<8}{'load s':>8}{'ready s':>9}{'(best)':>9}{'peak MB':>9}{'private':>9}{'files':>7}")
    for cache in ("off", "empty", "filled"):
        rows = [each for each in starts if each.cache == cache]
        ready, load = (percentiles([getattr(row, name) for row in rows]) for name in ("ready_s", "load_s"))
        peak, private, file = (max(getattr(row, n) for row in rows) for n in ("peak_mb", "private_mb", "file_mb"))
        print(f"{cache:<8}{load.median_ms:>8.2f}{ready.median_ms:>9.2f}{ready.best_ms:>9.2f}", end="")
        print(f"{peak:>9.0f}{private:>9.0f}{file:>7.0f}")
    if options.json:
        about = {"arguments": used(options), "machine": machine("cpu"), "starts": [asdict(each) for each in starts]}
        write_json(options.json, about)


if __name__ == "__main__":
    main()
