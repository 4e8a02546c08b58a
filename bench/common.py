"""What the benchmarks share: options, refusals, frames, percentiles, the machine, result files.

Importing it lets a program find `ckd_fast` in a plain checkout. Nothing here imports torch before it is called.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from ckd_fast.reference.config import ModelConfig

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

DTYPES = ("bfloat16", "float16", "float32")
ELIMINATIONS = ("mce", "ce", "none")
BOX = (288.0, 192.0, 64.0, 96.0)


def program(about: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the program's docstring as it stands."""
    return argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)


def frame_program(about: str | None, *, dtypes: bool = False) -> argparse.ArgumentParser:
    """The same with options that say which frame; `dtypes` for a program that takes several at once, but not float8."""
    parser = program(about)
    parser.add_argument("--model", default="base", help="preset (default: base)")
    parser.add_argument("--elimination", choices=ELIMINATIONS, default="mce", help="(default: mce)")
    known: tuple[str, ...] = DTYPES if dtypes else (*DTYPES, "float8")
    several: dict[str, Any] = {"nargs": "+", "default": ["bfloat16"]} if dtypes else {"default": "bfloat16"}
    parser.add_argument("--dtype", choices=known, help="(default: bfloat16)", **several)
    return parser


def refuse(message: object) -> NoReturn:
    """End the program with one line on standard error and exit code 2."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    raise SystemExit(2)


def need_gpu(otherwise: str = "") -> None:
    import torch

    if not torch.cuda.is_available():
        refuse(f"measures on a GPU, and torch sees none{otherwise}")


def add_gpu_options(parser: argparse.ArgumentParser) -> None:
    """Options of the programs that bench/gpu.py calls."""
    parser.add_argument("--tiles", type=Path, metavar="FILE", help="measured tiles (default: kernels/tiles.json)")
    parser.add_argument(
        "--rehearse", action="store_true", help="try everything at a small size on the CPU; its times mean nothing"
    )


def gpu_or_rehearsal(options: argparse.Namespace) -> None:
    """Refuse to measure without a GPU, and to rehearse where kernels would not be interpreted."""
    if not options.rehearse:
        need_gpu("; --rehearse tries everything on the CPU")
    elif os.environ.get("CUDA_VISIBLE_DEVICES") != "" or os.environ.get("TRITON_INTERPRET") != "1":
        refuse(
            "--rehearse needs CUDA_VISIBLE_DEVICES= and TRITON_INTERPRET=1, as bash bench/gpu.sh --rehearse sets them"
        )


def frame_config(options: argparse.Namespace) -> ModelConfig:
    """The preset that `frame_program`'s options name."""
    from ckd_fast.reference.config import preset

    try:
        return dataclasses.replace(preset(options.model), elimination=options.elimination)
    except ValueError as error:
        refuse(error)


def clip(frames: int) -> list[tuple[Any, Any]]:
    """640x480 pairs in host memory."""
    from ckd_fast.datasets import ClipConfig, SyntheticClip

    return [(frame.rgb, frame.tir) for frame in SyntheticClip(ClipConfig(frames=frames))]


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
        "cores": str(os.cpu_count()),
        "instructions": instructions(),
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
    return answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0] or "unknown"


def commit() -> str:
    """The checkout's commit; "-dirty" where files differ from it; CKD_FAST_COMMIT, or "unknown", outside a checkout."""
    described = answer("git", "-C", str(ROOT), "describe", "--always", "--dirty")
    return described or os.environ.get("CKD_FAST_COMMIT", "unknown")


def answer(*command: str) -> str:
    """What a program prints; nothing where it is absent or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def instructions() -> str:
    """The vector instructions that matrix products depend on, as Linux tells them; "unknown" elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next((line for line in lines if line.startswith("flags")), "")
    known = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    return " ".join(flag for flag in known if flag in flags.split()) or "unknown"


def used(options: argparse.Namespace) -> dict[str, str]:
    """A program's arguments, for its result file."""
    return {name: str(value) for name, value in vars(options).items() if name != "json"}


def save_json(path: Path, content: object) -> None:
    """Replace a result file as a whole, so that a program that is killed leaves the rows that it had."""
    from ckd_fast.files import write_atomically

    write_atomically(path, json.dumps(content, indent=2) + "\n")


def write_json(path: Path, content: object) -> None:
    """Write a result file, and say where it is."""
    save_json(path, content)
    print(f"written to {path}")
