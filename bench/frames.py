"""What only a GPU can say of whole frames: many targets, first frames, agreement, energy, the profiler's view.

    python bench/frames.py targets --json out/targets.json
    python bench/frames.py first | agreement | energy | profile | frame

`bash bench/gpu.sh PART OUTDIR` runs these and everything else, each in its own time. A result file is replaced after
each row, so a program that is stopped leaves the rows that it had.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import (
    BOX,
    DTYPES,
    ROOT,
    Times,
    add_gpu_options,
    gpu_or_rehearsal,
    machine,
    percentiles,
    program,
    save_json,
    used,
)
from energy import joules_meter
from plans import frame_planner, random_build
from stage import (
    DEVICE,
    GPU,
    calibrated,
    clips_to_calibrate,
    config_of,
    dtype_of,
    engine_of,
    has_float8,
    pairs,
    settings_of,
)
from timing import captured, matmul_ceiling_tflops, queued_ms

from ckd_fast import MultiTracker, Tracker, TrackerConfig, load_model
from ckd_fast.boxes import iou
from ckd_fast.engines import Search
from ckd_fast.frames import check_pair, first_pair
from ckd_fast.kernels.launch import Launch
from ckd_fast.quantization import Clip, Wanted, compare, search_again, summary, track
from ckd_fast.weights import LoadedModel

TRUE_GFLOP = 90.0  # of the base model's frame, attention's products included
LEAST_MEAN_IOU = {"float32": 0.999, "float16": 0.99, "bfloat16": 0.99}  # against the float32 reference
LEAST_IN_FLOAT8 = Wanted(kept=0.93, iou=0.95)  # the same, for weights that track; nothing is promised of random ones
OBSERVED = 30  # frames whose kept tokens are compared, launch by launch


Save = Callable[[object], None]  # writes what there is so far


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


def targets(options: argparse.Namespace, save: Save) -> None:
    """Milliseconds of a frame pair with 1 to 32 targets, and the share of the matrix ceiling."""
    frames, ceiling = pairs(8), matmul_ceiling_tflops()
    engine = engine_of("triton", random_model(options), options.dtype, options.tiles)
    rows: list[ManyTargets] = []
    further = None
    for count in options.counts:
        tracker = MultiTracker(engine=engine)
        numbers = tracker.init(*frames[0], boxes_of(count))
        times = []
        for turn in range(options.turns):
            for number, box in zip(numbers, boxes_of(count), strict=True):
                tracker.set_box(number, box)
            start = time.perf_counter()
            tracker.update(*frames[turn % len(frames)])
            times.append((time.perf_counter() - start) * 1e3)
        shape = engine.config
        images = [torch.randn(2, count, 3, side, side, device=engine.device, dtype=engine.dtype)
                  for side in (shape.template_size, shape.search_size)]  # fmt: skip
        alone = awaited(partial(engine.run_network, *images))
        found = percentiles(times[min(10, len(times) - 1) :])
        share = TRUE_GFLOP * count / alone / ceiling if options.model == "base" else None
        rows.append(ManyTargets(count, found, alone, share))
        by_count = {row.targets: row.network_ms for row in rows}
        if 1 in by_count and 8 in by_count:
            further = (by_count[8] - by_count[1]) / 7 / by_count[1]
        save({"rows": [asdict(row) for row in rows], "matmul_tflops": ceiling, "eighth_over_first": further})
        told = f"{100 * share:.1f} % of the ceiling" if share is not None else ""
        print(f"{count:>3} targets: {found.median_ms:8.3f} ms end to end, {alone:8.3f} ms network {told}", flush=True)
    if further is not None:
        print(f"a further target up to eight costs {further:.2f} of the first; ceiling {ceiling:.0f} TFLOP/s")


def random_model(options: argparse.Namespace) -> LoadedModel:
    return load_model("random", config_of(options.model))


def awaited(call: Callable[[], object], count: int = 60) -> float:
    """Median milliseconds on the device, calls queued behind each other."""
    for _ in range(10 if GPU else 1):
        call()
    return percentiles(queued_ms(call, count if GPU else 1)).median_ms


FIRST = """
import json, sys, time
start = time.perf_counter()
import torch
from pathlib import Path
from ckd_fast import Tracker, load_model
from common import BOX
from stage import GPU, config_of, engine_of, pairs
imported = time.perf_counter()
frames, model = pairs(3), load_model("random", config_of(sys.argv[1]))
made = time.perf_counter()
tracker = Tracker(engine=engine_of("triton", model, sys.argv[2], Path(sys.argv[3]) if sys.argv[3] else None))
built = time.perf_counter()
tracker.init(*frames[0], BOX)
started = time.perf_counter()
times = []
for pair in (frames[1], frames[2], frames[1], frames[2]):
    begin = time.perf_counter()
    tracker.update(*pair)
    times.append(1e3 * (time.perf_counter() - begin))
print(json.dumps({"import_s": imported - start, "engine_s": built - made, "init_s": started - built,
                  "frames_ms": times, "engine_bytes": vars(tracker.engine.memory()),
                  "torch_peak_bytes": torch.cuda.max_memory_allocated() if GPU else 0}))
"""


def first(options: argparse.Namespace, save: Save) -> None:
    """The first frames of a new process, with an empty and with a filled cache of compiled kernels; memory."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TRITON_CACHE_DIR": cache, "PYTHONPATH": f"{ROOT}:{ROOT / 'bench'}"}
        for name in ("cold", "warm"):
            command = [sys.executable, "-c", FIRST, options.model, options.dtype, str(options.tiles or "")]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                raise RuntimeError(f"first frame, {name} cache: {done.stderr[-2000:]}")
            found[name] = json.loads(done.stdout.splitlines()[-1])
            save(found)
            frames = ", ".join(f"{value:.1f}" for value in found[name]["frames_ms"])
            engine, init = found[name]["engine_s"], found[name]["init_s"]
            print(f"{name} cache: engine {engine:.1f} s, init {init:.1f} s, frames {frames} ms", flush=True)
    print(f"memory: {found['warm']['engine_bytes']}, torch's peak {found['warm']['torch_peak_bytes'] / 1e6:.0f} MB")


def agreement(options: argparse.Namespace, save: Save) -> None:
    """Boxes of every precision against the float32 reference, from the same box in every frame."""
    torch.backends.cudnn.allow_tf32 = False  # the truth is float32 throughout
    model = load_model(options.weights) if options.weights else random_model(options)
    given = pairs(options.frames + 1)
    truth = engine_of("reference", model, "float32", None)
    form = first_pair(*given[0], TrackerConfig()).form
    frames = [check_pair(rgb, tir, form, TrackerConfig()) for rgb, tir in given]
    found: dict[str, Any] = {}
    # The true boxes once for all engines.
    target, boxes, expected = truth.make_target(frames[0], BOX), [BOX], []
    for frame in frames[1:]:
        expected += truth.start([Search(target, boxes[-1], 4.0)], frame).result()
        # With random weights boxes wander off: the target stays where it is, only a size that it could have counts.
        boxes.append(expected[-1].box if options.weights else BOX)
    observed = Clip("benchmark", tuple(frames[: OBSERVED + 1]), BOX)
    seen = track(truth, observed)
    precisions = [*LEAST_MEAN_IOU, *["float8"] * has_float8()]
    for name, dtype in (("reference", "bfloat16"), *(("triton", dtype) for dtype in precisions)):
        ranged = calibrated(model, clips_to_calibrate()) if dtype == "float8" else model
        engine = engine_of(name, ranged, dtype, options.tiles)
        ours, overlaps, cells = engine.make_target(frames[0], BOX), [], 0
        for frame, box, true in zip(frames[1:], boxes, expected, strict=False):
            (one,) = engine.start([Search(ours, box, 4.0)], frame).result()
            overlaps.append(float(iou(one.box, true.box)))
            cells += one.cell == true.cell
        mean = sum(overlaps) / len(overlaps)
        followed = summary([compare(*two) for two in zip(seen, search_again(engine, observed, seen), strict=True)])
        found[f"{name} {dtype}"] = {
            "mean_iou": mean, "least_iou": min(overlaps), "same_cell": cells / len(overlaps), "kept": followed.kept,
        }  # fmt: skip
        bound = LEAST_MEAN_IOU.get(dtype, 0.0) if name == "triton" else 0.0
        if mean < bound:
            options.failed.append(f"{name} {dtype}: mean IoU {mean:.5f} is below {bound}")
        if dtype == "float8" and options.weights and not LEAST_IN_FLOAT8.met_by(followed):
            told = f"kept tokens {followed.kept:.3f}, median IoU {followed.iou:.3f}"
            options.failed.append(f"{name} {dtype}: {told}, expected {LEAST_IN_FLOAT8.kept} and {LEAST_IN_FLOAT8.iou}")
        save(found)
        told = f"mean IoU {mean:.5f}, least {min(overlaps):.4f}, same cell in {cells} of {len(overlaps)} frames"
        print(f"{name} {dtype}: {told}, kept tokens {followed.kept:.4f}", flush=True)
    if not has_float8():
        print("triton float8: left out, needs a GPU of compute capability 8.9 or newer")


@dataclass(frozen=True)
class Energy:
    """What frames end to end, one behind the other, take from the GPU's supply."""

    engine: str
    frames: int
    joules_a_frame: float
    watts: float


def energy(options: argparse.Namespace, save: Save) -> None:
    """Joules a frame by the driver's counter, engines one after the other; the idle GPU's watts beside them."""
    meter, frames, rows = joules_meter(), pairs(8), list[Energy]()
    begin, before = time.perf_counter(), meter()
    time.sleep(options.seconds)
    idle = (meter() - before) / (time.perf_counter() - begin)
    for name, dtype in (("triton", options.dtype), ("reference", options.dtype), ("reference", "float32")):
        tracker = Tracker(engine=engine_of(name, random_model(options), dtype, options.tiles))
        tracker.init(*frames[0], BOX)
        count, until = -len(frames), float("inf")  # the first round compiles and captures
        while time.perf_counter() < until:
            if count == 0:
                begin, before = time.perf_counter(), meter()
                until = begin + options.seconds
            tracker.box = BOX
            tracker.update(*frames[count % len(frames)])
            count += 1
        joules, seconds = meter() - before, time.perf_counter() - begin
        rows.append(Energy(f"{name} {dtype}", count, joules / count, joules / seconds))
        save({"idle_watts": idle, "rows": [asdict(row) for row in rows]})
        print(f"{rows[-1].engine:<22}{rows[-1].joules_a_frame:8.4f} J a frame, {rows[-1].watts:6.0f} W", flush=True)


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


def profile(options: argparse.Namespace, save: Save) -> None:
    """Every launch of a frame by time, as the profiler sees it in the replayed graph."""
    build = random_build(config_of(options.model), dtype_of(options.dtype), settings_of(options.tiles), DEVICE)
    launches = (plan := frame_planner(build).plan()).launches
    with captured(plan.run) as replay:
        kernels = profiled(replay, {launch.kernel_name for launch in launches}) if GPU else stand_ins(launches)
    rows = by_launch(launches, kernels)
    save({"rows": [asdict(row) for row in rows]})
    for row in rows:
        print(f"{row.launch:<24}{row.size:<52}{row.median_us:>9.2f} us")
    print(f"sum {sum(row.median_us for row in rows):.1f} us; launches that overlap count twice where they do")


def profiled(replay: Callable[[], object], names: set[str]) -> list[Kernel]:
    """Kernels of these names in 20 replays, in the order of time."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(20):
            replay()
        torch.cuda.synchronize()
    seen = [event for event in recorded.events() if event.device_type.name == "CUDA"]
    seen.sort(key=lambda event: event.time_range.start)
    return [
        Kernel(event.name, event.time_range.elapsed_us()) for event in seen if any(name in event.name for name in names)
    ]


def stand_ins(launches: Sequence[Launch]) -> list[Kernel]:
    """What a profiler would see; it sees nothing of the interpreter."""
    return [Kernel(f"_{launch.kernel_name}_kernel", 1.0) for launch in launches]


def frame(options: argparse.Namespace, save: Save) -> None:
    """A few frames of a small model with every kind of launch, for compute-sanitizer."""
    model = load_model("random", config_of("tiny"))
    engine = engine_of("triton", model, options.dtype, options.tiles)
    given = pairs(3)
    tracker = MultiTracker(engine=engine)
    tracker.init(*given[0], boxes_of(3))
    boxes = [[result.box for result in tracker.update(*pair).values()] for pair in given]
    print(f"boxes of three targets in {len(given)} frames: {boxes}; {engine}")
    save({"boxes": boxes, "engine": str(engine)})


PROGRAMS = {
    "targets": targets, "first": first, "agreement": agreement, "energy": energy, "profile": profile, "frame": frame,
}  # fmt: skip


def main() -> int:
    parser = program(__doc__)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("--model", default="base", help="preset of random weights (default: base)")
    parser.add_argument("--weights", help="a file, for agreement on weights that track")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 8, 32, 2, 4, 16], help="of targets")
    parser.add_argument("--turns", type=int, default=60, help="frames per number of targets (default: 60)")
    parser.add_argument("--frames", type=int, default=200, help="of agreement (default: 200)")
    parser.add_argument("--seconds", type=float, default=3, help="of energy, for each engine (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: out/PROGRAM.json")
    add_gpu_options(parser)
    options = parser.parse_args()
    gpu_or_rehearsal(options)
    if options.rehearse:
        options.counts, options.turns, options.frames, options.seconds = [1, 3], 1, 2, 0.01
    path = options.json or ROOT / "out" / f"{options.program}.json"
    options.failed = []
    about = {"machine": machine(DEVICE.type), "arguments": used(options)}
    PROGRAMS[options.program](
        options, lambda result: save_json(path, {**about, "failed": options.failed, "result": result})
    )
    print(f"written to {path}")
    for failure in options.failed:
        print(f"frames.py: {failure}", file=sys.stderr)
    return 1 if options.failed else 0


if __name__ == "__main__":
    sys.exit(main())
