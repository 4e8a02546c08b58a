"""compute-sanitizer over a few frames of a small model: accesses out of bounds, and races in shared memory.

    python bench/sanitize.py --json out/sanitize.json

torch's caching allocator is off, because it rounds sizes up and an access behind a tensor would stay inside. Racecheck
sees shared memory only; races between programs are looked for without a GPU (scripts/check-kernels).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from common import ROOT, add_gpu_options, gpu_or_rehearsal, machine, program, save_json, used

USUAL = "/usr/local/cuda/bin/compute-sanitizer"
UNABLE = ("Device not supported", "No such file")


def main() -> int:
    parser = program(__doc__)
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "sanitize.json", metavar="FILE")
    add_gpu_options(parser)
    options = parser.parse_args()
    gpu_or_rehearsal(options)
    tool = os.environ.get("SANITIZER") or shutil.which("compute-sanitizer") or USUAL
    frames = [sys.executable, str(ROOT / "bench" / "frames.py"), "frame", "--json", os.devnull]
    frames += ["--rehearse"] if options.rehearse else []
    subprocess.run(frames, check=True)  # compiles the kernels, so that only frames run under the tool
    checks, failed = dict[str, str](), 0
    about = {"machine": machine("cpu" if options.rehearse else "cuda"), "arguments": used(options)}
    for check in ("memcheck", "racecheck"):
        under = [] if options.rehearse else [tool, "--tool", check, "--error-exitcode", "9"]
        environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        try:
            done = subprocess.run([*under, *frames], capture_output=True, text=True, check=False, env=environment)
            code, said = done.returncode, done.stdout + done.stderr
        except FileNotFoundError as error:
            code, said = 127, f"{error}: No such file"
        print("\n".join(said.splitlines()[-25:]), flush=True)
        if code == 0:
            checks[check] = "clean"
        elif any(text in said for text in UNABLE):
            checks[check] = "not available on this machine"
        else:
            checks[check], failed = f"failed, exit code {code}", failed + 1
        save_json(options.json, {**about, "checks": checks})
        print(f"{check}: {checks[check]}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
