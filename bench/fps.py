"""Frames per second of CKD, by engine, beside the published figure.

    python bench/fps.py --engine reference --model base --elimination mce

Works from a plain checkout. Protocol "paper" is the authors': the network alone, batch 1, random weights and inputs,
float32, all template tokens deciding, a warm-up, many iterations, one synchronisation at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PUBLISHED_FPS = {"mce": 96.4, "ce": 96.4, "none": 84.8}  # the paper's Table III, ViT-B, device not stated
# Network of the authors' repaired program on 2 cores of a 2.5 GHz Xeon, torch 2.13, float32: median (best) of 9, in ms.
AUTHORS_CPU_MS = {"mce": (763, 547), "none": (835, 699)}


@dataclass(frozen=True)
class Measurement:
    """Times of one engine under one protocol."""

    engine: str
    protocol: str
    model: str
    elimination: str
    dtype: str
    iterations: int
    fps: float
    best_ms: float
    median_ms: float
    p90_ms: float
    p99_ms: float


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="reference", help="reference (default)")
    parser.add_argument("--model", default="base", help="preset: base, base-shared, small, tiny (default: base)")
    parser.add_argument("--elimination", choices=("mce", "ce", "none"), default="mce")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    return parser


def main() -> int:
    """Measure, print a table, write JSON."""
    options = build_parser().parse_args()
    try:
        import torch

        from ckd_fast.errors import CkdFastError
        from ckd_fast.reference.config import PRESETS
        from ckd_fast.weights import load_model
        from ckd_fast.weights.load import resolve_config
    except ImportError as error:
        print(f"fps.py: {error}; run scripts/setup first", file=sys.stderr)
        return 2
    if options.engine != "reference":
        known = "unknown" if options.engine not in ("compiled", "triton") else "not part of this version yet"
        print(f"fps.py: engine {options.engine!r} is {known}; available: reference", file=sys.stderr)
        return 2
    if options.iterations < 1 or options.warmup < 0:
        print("fps.py: --iterations must be at least 1 and --warmup at least 0", file=sys.stderr)
        return 2
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        config = resolve_config(options.model)
        config = dataclasses.replace(config or PRESETS["base"], elimination=options.elimination, template_range="ALL")
        model = load_model("random", config).student().to(device)
    except (CkdFastError, RuntimeError) as error:
        print(f"fps.py: {error}", file=sys.stderr)
        return 2

    template_images = torch.randn(2, 1, 3, config.template_size, config.template_size, device=device)
    search_images = torch.randn(2, 1, 3, config.search_size, config.search_size, device=device)
    with torch.inference_mode():
        # The authors embed the template anew in every iteration; so does this protocol.
        def network() -> None:
            model(model.embed_template(template_images), search_images)

        times = measure(network, options.warmup, options.iterations, device)
    result = summarise(times, "reference", "paper", options.model, options.elimination, "float32")
    print_table(result, device)
    if options.json:
        written = {"machine": machine(device), "results": [dataclasses.asdict(result)]}
        options.json.write_text(json.dumps(written, indent=2) + "\n")
    return 0


def measure(network: Callable[[], None], warmup: int, iterations: int, device: str) -> list[float]:
    """Milliseconds of each iteration; on a GPU the mean of all, since it is synchronised once at the end."""
    import torch

    for _ in range(warmup):
        network()
    if device == "cpu":
        times = []
        for _ in range(iterations):
            start = time.perf_counter()
            network()
            times.append((time.perf_counter() - start) * 1e3)
        return times
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(iterations):
        network()
    torch.cuda.synchronize()
    return [(time.perf_counter() - start) * 1e3 / iterations] * iterations


def summarise(times: list[float], engine: str, protocol: str, model: str, elimination: str, dtype: str) -> Measurement:
    """Percentiles of a run."""
    ordered = sorted(times)
    at = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))]  # noqa: E731
    return Measurement(
        engine=engine,
        protocol=protocol,
        model=model,
        elimination=elimination,
        dtype=dtype,
        iterations=len(times),
        fps=1e3 / statistics.fmean(times),
        best_ms=ordered[0],
        median_ms=statistics.median(times),
        p90_ms=at(0.9),
        p99_ms=at(0.99),
    )


def machine(device: str) -> dict[str, str]:
    """What a figure cannot be read without."""
    import torch

    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False)
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
        "date": datetime.now(tz=timezone.utc).isoformat(timespec="seconds"),
    }


def cpu_name() -> str:
    """The processor as the system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def print_table(result: Measurement, device: str) -> None:
    """A small table, the published figure beside ours."""
    about = machine(device)
    print(f"{about['device']}, {about['threads']} threads, torch {about['torch']}, commit {about['commit']}")
    print("random weights and inputs: speed only, no tracking (no packaged model ships yet)\n")
    print(f"{'':<28}{'frames/s':>10}{'best ms':>10}{'median ms':>11}{'p90 ms':>10}")
    name = f"{result.engine} {result.model} {result.elimination} {result.dtype}"
    print(f"{name:<28}{result.fps:>10.2f}{result.best_ms:>10.1f}{result.median_ms:>11.1f}{result.p90_ms:>10.1f}")
    if result.model == "base":
        print(f"{'as published, ViT-B':<28}{PUBLISHED_FPS[result.elimination]:>10.2f}   (device not stated)")
        if device == "cpu" and result.elimination in AUTHORS_CPU_MS:
            median, best = AUTHORS_CPU_MS[result.elimination]
            name = "authors' program, 2 cores"
            note = "(Xeon 2.5 GHz, torch 2.13, repaired copy)"
            print(f"{name:<28}{1e3 / median:>10.2f}{best:>10.1f}{median:>11.1f}{'':>10}   {note}")


if __name__ == "__main__":
    sys.exit(main())
