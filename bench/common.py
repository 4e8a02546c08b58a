"""What the benchmarks share: the machine line, percentiles, where results go."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Times:
    """Percentiles of a series of times in milliseconds."""

    count: int
    mean_ms: float
    best_ms: float
    median_ms: float
    p90_ms: float
    p99_ms: float

    @property
    def per_second(self) -> float:
        """How many fit into a second, by the mean."""
        return 1e3 / self.mean_ms


def percentiles(times_ms: Sequence[float]) -> Times:
    """Nearest-rank percentiles."""
    ordered = sorted(times_ms)

    def rank(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    mean, median = statistics.fmean(ordered), statistics.median(ordered)
    return Times(len(ordered), mean, ordered[0], median, rank(0.9), rank(0.99))


def machine(device: str) -> dict[str, str]:
    """What a figure cannot be read without: device, versions, commit, date."""
    import numpy as np
    import torch

    import ckd_fast

    described = {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else cpu_name(),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "ckd_fast": ckd_fast.__version__,
        "commit": commit(),
        "date": datetime.now(tz=timezone.utc).isoformat(timespec="seconds"),
    }
    if device.startswith("cuda"):
        import triton

        described["cuda"] = str(torch.version.cuda)
        described["triton"] = triton.__version__
        described["driver"] = driver()
        described["tf32_convolutions"] = str(torch.backends.cudnn.allow_tf32)
    return described


def driver() -> str:
    """The NVIDIA driver's version, "unknown" where its tool is absent."""
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown"


def commit() -> str:
    """The checkout's commit; "-dirty" where files differ from it; CKD_FAST_COMMIT, or "unknown", outside a checkout."""
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(describe, capture_output=True, text=True, check=False)
    except OSError:
        return os.environ.get("CKD_FAST_COMMIT", "unknown")
    return done.stdout.strip() or os.environ.get("CKD_FAST_COMMIT", "unknown")


def cpu_name() -> str:
    """The processor as the system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write_json(path: Path, content: object) -> None:
    """Write a result file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
