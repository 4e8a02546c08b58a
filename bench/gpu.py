"""What only a GPU can say beside speed and kernels: many targets, the first frame, agreement, the profiler's view.

    python bench/gpu.py targets --json out/targets.json
    python bench/gpu.py first | agreement | profile | frame

`bash bench/gpu.sh OUTDIR` runs these and everything else, each section in its own time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import BOX, DTYPES, ROOT, Times, clip, machine, need_gpu, percentiles, program, write_json
from plans import frame_planner, random_build
from timing import captured, queued_ms

from ckd_fast import MultiTracker, TrackerConfig, load_model
from ckd_fast.boxes import iou
from ckd_fast.engines import Engine, Search, build_engine
from ckd_fast.engines.triton import TritonEngine
from ckd_fast.frames import check_pair, first_pair
from ckd_fast.kernels.launch import Launch, LaunchSettings
from ckd_fast.kernels.requirements import can_overlap
from ckd_fast.kernels.tiles import chip_of, chooser
from ckd_fast.reference.config import preset

TRUE_GFLOP = 90.0  # of the base model's frame, attention's products included
LEAST_MEAN_IOU = {"float32": 0.999, "float16": 0.99, "bfloat16": 0.99}  # against the float32 reference


def boxes_of(count: int) -> list[tuple[float, float, float, float]]:
    """Targets spread over the frame."""
    return [(40.0 + 70 * (i % 8), 40.0 + 90 * (i // 8), 40.0 + i, 60.0) for i in range(count)]


@dataclass(frozen=True)
class ManyTargets:
    """A frame pair with so many targets."""

    targets: int
    end_to_end: Times
    network_ms: float
    share_of_matmul_ceiling: float | None


def targets(options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a frame pair with 1 to 32 targets, and the share of the matrix ceiling."""
    from timing import matmul_ceiling_tflops

    pairs = clip(8)
    ceiling = matmul_ceiling_tflops()
    engine = build_engine("triton", load_model("random", options.model), "cuda", options.dtype)
    rows: list[ManyTargets] = []
    for count in options.counts:
        tracker = MultiTracker(engine=engine)
        numbers = tracker.init(*pairs[0], boxes_of(count))
        times = []
        for turn in range(options.turns):
            for number, box in zip(numbers, boxes_of(count), strict=True):
                tracker.set_box(number, box)
            start = time.perf_counter()
            tracker.update(*pairs[turn % len(pairs)])
            times.append((time.perf_counter() - start) * 1e3)
        shape = engine.config
        images = [torch.randn(2, count, 3, side, side, device=engine.device, dtype=engine.dtype)
                  for side in (shape.template_size, shape.search_size)]  # fmt: skip
        alone = awaited(partial(engine.run_network, *images))
        found = percentiles(times[min(10, len(times) - 1) :])
        share = TRUE_GFLOP * count / alone / ceiling if options.model == "base" else None
        rows.append(ManyTargets(count, found, alone, share))
        told = f"{100 * share:.1f} % of the ceiling" if share is not None else ""
        print(f"{count:>3} targets: {found.median_ms:8.3f} ms end to end, {alone:8.3f} ms network {told}", flush=True)
    by_count = {row.targets: row.network_ms for row in rows}
    further = None
    if 1 in by_count and 8 in by_count:
        further = (by_count[8] - by_count[1]) / 7 / by_count[1]
        print(f"a further target up to eight costs {further:.2f} of the first; ceiling {ceiling:.0f} TFLOP/s")
    written = [dataclasses.asdict(row) for row in rows]
    return {"rows": written, "matmul_tflops": ceiling, "eighth_over_first": further}


def awaited(call: Callable[[], object], count: int = 60) -> float:
    """Median milliseconds on the device, calls queued behind each other."""
    for _ in range(10):
        call()
    return percentiles(queued_ms(call, count)).median_ms


FIRST = """
import json, sys, time
start = time.perf_counter()
import torch
from ckd_fast import Tracker
imported = time.perf_counter()
import gpu
pairs = gpu.clip(3)
made = time.perf_counter()
tracker = Tracker("random", sys.argv[1], engine="triton", device="cuda")
built = time.perf_counter()
tracker.init(*pairs[0], gpu.BOX)
started = time.perf_counter()
times = []
for pair in (pairs[1], pairs[2], pairs[1], pairs[2]):
    begin = time.perf_counter()
    tracker.update(*pair)
    times.append(1e3 * (time.perf_counter() - begin))
memory = tracker.engine.memory()
print(json.dumps({"import_s": imported - start, "engine_s": built - made, "init_s": started - built,
                  "frames_ms": times, "engine_bytes": vars(memory),
                  "torch_peak_bytes": torch.cuda.max_memory_allocated()}))
"""


def first(options: argparse.Namespace) -> dict[str, Any]:
    """The first frames of a new process, with an empty and with a filled cache of compiled kernels; memory."""
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TRITON_CACHE_DIR": cache, "PYTHONPATH": f"{ROOT}:{ROOT / 'bench'}"}
        for name in ("cold", "warm"):
            command = [sys.executable, "-c", FIRST, options.model]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                raise RuntimeError(f"first frame, {name} cache: {done.stderr[-2000:]}")
            found[name] = json.loads(done.stdout.splitlines()[-1])
            frames = ", ".join(f"{value:.1f}" for value in found[name]["frames_ms"])
            engine, init = found[name]["engine_s"], found[name]["init_s"]
            print(f"{name} cache: engine {engine:.1f} s, init {init:.1f} s, frames {frames} ms", flush=True)
    print(f"memory: {found['warm']['engine_bytes']}, torch's peak {found['warm']['torch_peak_bytes'] / 1e6:.0f} MB")
    return found


def agreement(options: argparse.Namespace) -> dict[str, Any]:
    """Boxes of every precision against the float32 reference, from the same box in every frame."""
    torch.backends.cudnn.allow_tf32 = False  # the truth is float32 throughout
    model = load_model(options.weights or "random", None if options.weights else options.model)
    pairs = clip(options.frames + 1)
    truth: Engine = build_engine("reference", model, "cuda", "float32")
    form = first_pair(*pairs[0], TrackerConfig()).form
    frames = [check_pair(rgb, tir, form, TrackerConfig()) for rgb, tir in pairs]
    found: dict[str, Any] = {}
    for name, dtype in (("reference", "bfloat16"), *(("triton", dtype) for dtype in LEAST_MEAN_IOU)):
        engine = build_engine(name, model, "cuda", dtype)
        ours, theirs = engine.make_target(frames[0], BOX), truth.make_target(frames[0], BOX)
        box, overlaps, cells = BOX, [], 0
        for frame in frames[1:]:
            (expected,) = truth.start([Search(theirs, box, 4.0)], frame).result()
            (one,) = engine.start([Search(ours, box, 4.0)], frame).result()
            overlaps.append(float(iou(one.box, expected.box)))
            cells += one.cell == expected.cell
            # With random weights boxes wander off: the target stays where it is, only a size that it could have counts.
            box = expected.box if options.weights else BOX
        mean = sum(overlaps) / len(overlaps)
        found[f"{name} {dtype}"] = {"mean_iou": mean, "least_iou": min(overlaps), "same_cell": cells / len(overlaps)}
        bound = LEAST_MEAN_IOU[dtype] if name == "triton" else 0.0
        if mean < bound:
            options.failed.append(f"{name} {dtype}: mean IoU {mean:.5f} is below {bound}")
        told = f"mean IoU {mean:.5f}, least {min(overlaps):.4f}, same cell in {cells} of {len(overlaps)} frames"
        print(f"{name} {dtype}: {told}", flush=True)
    return found


@dataclass(frozen=True)
class Kernel:
    """A kernel that the profiler saw."""

    name: str
    microseconds: float


@dataclass(frozen=True)
class Profiled:
    """A launch of the plan in the replayed graph."""

    launch: str
    size: str
    median_us: float


def by_launch(launches: Sequence[Launch], kernels: Sequence[Kernel]) -> list[Profiled]:
    """A plan's launches with the times of their kernels, which come frame after frame in the order of the plan."""
    frames, rest = divmod(len(kernels), len(launches))
    rows = []
    for number, launch in enumerate(launches):
        mine = kernels[number :: len(launches)]
        if rest or any(launch.kernel_name not in kernel.name for kernel in mine):
            raise ValueError(f"{len(kernels)} kernels in another order than the {len(launches)} kernels of a frame")
        rows.append(Profiled(launch.name, launch.what, statistics.median(kernel.microseconds for kernel in mine)))
    print(f"{frames} frames")
    return rows


def profile(options: argparse.Namespace) -> dict[str, Any]:
    """Every launch of a frame by time, as the profiler sees it in the replayed graph."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    device = torch.device("cuda")
    settings = LaunchSettings(chooser(chip_of(device)), overlap=can_overlap(device))
    build = random_build(preset(options.model), getattr(torch, options.dtype), settings, device)
    launches = (plan := frame_planner(build).plan()).launches
    with captured(plan) as graph, profiler(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(20):
            graph.replay()
        torch.cuda.synchronize()
    names = {launch.kernel_name for launch in launches}
    seen = [event for event in recorded.events() if event.device_type.name == "CUDA"]
    seen.sort(key=lambda event: event.time_range.start)
    kernels = [
        Kernel(event.name, event.time_range.elapsed_us()) for event in seen if any(name in event.name for name in names)
    ]
    rows = by_launch(launches, kernels)
    for row in rows:
        print(f"{row.launch:<24}{row.size:<52}{row.median_us:>9.2f} us")
    print(f"sum {sum(row.median_us for row in rows):.1f} us; launches that overlap count twice where they do")
    return {"rows": [dataclasses.asdict(row) for row in rows]}


def frame(options: argparse.Namespace) -> dict[str, Any]:  # noqa: ARG001
    """A few frames of a small model with every kind of launch, for compute-sanitizer."""
    config = dataclasses.replace(preset("tiny"), depth=2, eliminate_at=(1,))
    engine = build_engine("triton", load_model("random", config), "cuda", "bfloat16")
    if not isinstance(engine, TritonEngine):
        raise TypeError(f"expected the triton engine, got {engine}")
    pairs = clip(3)
    tracker = MultiTracker(engine=engine)
    tracker.init(*pairs[0], boxes_of(3))
    boxes = [[result.box for result in tracker.update(*pair).values()] for pair in pairs]
    print(f"boxes of three targets in {len(pairs)} frames: {boxes}")
    return {"boxes": boxes}


SECTIONS = {"targets": targets, "first": first, "agreement": agreement, "profile": profile, "frame": frame}


def main() -> int:
    parser = program(__doc__)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--model", default="base", help="preset of random weights (default: base)")
    parser.add_argument("--weights", help="a file, for agreement on weights that track")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 7, 8, 16, 32], help="of targets")
    parser.add_argument("--turns", type=int, default=60, help="frames per number of targets (default: 60)")
    parser.add_argument("--frames", type=int, default=200, help="of agreement (default: 200)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: out/SECTION.json")
    options = parser.parse_args()
    need_gpu()
    path = options.json or ROOT / "out" / f"{options.section}.json"
    options.failed = []
    result = SECTIONS[options.section](options)
    write_json(path, {"machine": machine("cuda"), "section": options.section, "result": result})
    for failure in options.failed:
        print(f"gpu.py: {failure}", file=sys.stderr)
    return 1 if options.failed else 0


if __name__ == "__main__":
    sys.exit(main())
