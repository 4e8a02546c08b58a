"""Frames per second of CKD, by engine, beside the published figure.

    python bench/fps.py --engine reference --model base --elimination mce
    python bench/fps.py --engine all --protocol paper
    python bench/fps.py --engine reference --no-graph          # shares of the steps
    python bench/fps.py --engine all --peers --device cpu      # beside plain exports, and the processor's ceiling

Works from a plain checkout. Weights are random: this measures speed, not tracking.

--protocol end-to-end (default)  from two 640x480 uint8 frames in host memory to a box in Python: checks, crops,
                                 network, decoding; not image decoding. Every frame searches around the same box of
                                 64x96 pixels, since random weights would let it drift to sizes that no target has.
--protocol ahead                 the same with `track_async`, one pair ahead of its result; the tracker carries its own
                                 box, because setting it would wait for the result. With random weights it drifts.
--protocol paper                 the authors': the network alone, batch 1, random tensors, the template embedded every
                                 time, all template tokens deciding, float32 unless --dtype, one synchronisation.

With several engines the measurement goes round them in turns, so that a busy machine slows all alike. With --peers the
last column is the share of the ceiling: operations of the products in a frame of engine openvino, over the time, over
the best matrix product of that precision that a library reaches in the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from common import (
    BOX,
    DTYPES,
    ELIMINATIONS,
    ROOT,
    Times,
    add_gpu_options,
    clip,
    gpu_or_rehearsal,
    machine,
    percentiles,
    program,
    refuse,
    save_json,
    used,
    write_json,
)

try:
    import torch
    from stage import SMALL, calibrated, clips_to_calibrate, engine_of
    from timing import queued_ms

    from ckd_fast import CkdFastError, EngineError, InputError, ModelConfig, Tracker, TrackerConfig, load_model
    from ckd_fast.engines import Engine, Search, build_engine, step_names
    from ckd_fast.frames import check_pair, first_pair
    from ckd_fast.pending import Pending
    from ckd_fast.reference.config import PRESETS
    from ckd_fast.training.recipes import PACKAGED_MODEL
    from ckd_fast.types import TrackResult
    from ckd_fast.weights import LoadedModel, open_model
    from ckd_fast.weights.load import resolve_config
except ImportError as error:
    refuse(f"{error}; sh scripts/setup installs what is missing")

ENGINES = ("reference", "compiled", "openvino", "onnx", "triton")
PROTOCOLS = ("end-to-end", "ahead", "paper")
PUBLISHED_FPS = {"mce": 96.4, "ce": 96.4, "none": 84.8}  # the paper's Table III, ViT-B, device not stated
# The authors' program, repaired, on 2 cores of a 2.5 GHz Xeon, torch 2.13, float32: median (best) of 9, milliseconds.
AUTHORS_CPU_MS = {
    ("paper", "mce"): (763, 547),
    ("paper", "none"): (835, 699),
    ("end-to-end", "mce"): (673, 551),
    ("end-to-end", "none"): (729, 688),
}
INT8, FLOAT8 = "int8", "float8"
CALIBRATED = {"openvino": INT8, "triton": FLOAT8}  # what an engine runs only with a calibration
TURNS = 5
SETTLING_SECONDS = 0.7


@dataclass(frozen=True)
class Result:
    """One engine under one protocol."""

    engine: str
    protocol: str
    model: str
    elimination: str
    dtype: str
    fps: float
    times: Times
    build_seconds: float | None  # None for peers
    ceiling_share: float | None = None  # of the best matrix product of its precision; on a CPU with --peers


def engine_and_dtype(text: str) -> tuple[str, str | None]:
    """NAME or NAME:DTYPE."""
    name, _, dtype = text.partition(":")
    if name not in (*ENGINES, "all") or dtype not in ("", *DTYPES, CALIBRATED.get(name, "")):
        known = f"{', '.join((*ENGINES, 'all'))}, each alone or with :{', :'.join(DTYPES)}"
        known += "".join(f", {engine}:{precision}" for engine, precision in CALIBRATED.items())
        raise argparse.ArgumentTypeError(f"{text!r}: known are {known}")
    return name, dtype or None


def build_parser() -> argparse.ArgumentParser:
    parser = program(__doc__)
    parser.add_argument(
        "--engine", nargs="+", type=engine_and_dtype, default=[("reference", None)], metavar="NAME[:DTYPE]",
        help=f"{', '.join(ENGINES)}, all; several are measured in turns, for example reference:float32 triton:bfloat16",
    )  # fmt: skip
    parser.add_argument("--peers", action="store_true", help="also plain exports in their runtimes (extra peers)")
    parser.add_argument("--model", default="base", help="base, base-shared, small, tiny or packaged (default: base)")
    parser.add_argument("--elimination", choices=ELIMINATIONS, default="mce", help="(default: mce)")
    parser.add_argument("--protocol", choices=(*PROTOCOLS, "all"), default="end-to-end", help="(default: end-to-end)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--dtype", choices=DTYPES, help="for engines named without a precision (default: their own)")
    modes = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
    parser.add_argument(
        "--compile-mode", choices=modes, default="default", help="of engine compiled (default: default)"
    )
    parser.add_argument("--iterations", type=int, help="frames to time (default: 20 on a CPU, 1000 on a GPU)")
    parser.add_argument("--warmup", type=int, help="frames before timing (default: 3 on a CPU, 500 on a GPU)")
    parser.add_argument("--no-graph", action="store_true", help="time each step by itself, with NVTX marks")
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "fps.json", metavar="FILE", help="(default: out/)")
    add_gpu_options(parser)
    return parser


def main() -> int:
    """Measure, print a table, write JSON; exit code 2 where something is missing, 1 where one of several engines is."""
    options = build_parser().parse_args()
    gpu = options.device.startswith("cuda") or (options.device == "auto" and torch.cuda.is_available())
    options.iterations = options.iterations if options.iterations is not None else (1000 if gpu else 20)
    options.warmup = options.warmup if options.warmup is not None else (500 if gpu else 3)
    if options.rehearse:
        gpu_or_rehearsal(options)
        options.iterations, options.warmup = 2, 1
    if options.iterations < 1 or options.warmup < 0:
        refuse("--iterations must be at least 1 and --warmup at least 0")
    try:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.open("a").close()
    except OSError as error:
        refuse(f"--json {options.json}: cannot be written ({error.strerror})")
    try:
        config = PACKAGED_MODEL if options.model == "packaged" else resolve_config(options.model) or PRESETS["base"]
        config = SMALL if options.rehearse else dataclasses.replace(config, elimination=options.elimination)
        if not options.no_graph:
            return 0 if compare(options, config) else 1
        stage_shares(options, config)
    except CkdFastError as error:
        refuse(error)
    return 0


def build(options: argparse.Namespace, model: LoadedModel, name: str, dtype: str | None) -> Engine:
    """An engine; "onnx" runs a file that is exported for it; int8 and float8 are calibrated here."""
    if dtype == INT8:
        from ckd_fast.quantization import Clip, Wanted, quantize

        frames = Clip.of("benchmark", clip(6), BOX)
        model = quantize(model, [frames], "frames of the benchmark", Wanted(0.0, 0.0), lambda _line: None)
    elif dtype == FLOAT8:
        model = calibrated(model, clips_to_calibrate())
    if options.rehearse:
        return engine_of(name, model, "float32", None)
    if name != "onnx":
        return build_engine(
            name, model, options.device, dtype or options.dtype, compile_mode=options.compile_mode, tiles=options.tiles
        )
    from ckd_fast.exporting import export_model

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export_model(model, file, dtype=dtype or options.dtype or "float32", on_progress=lambda _line: None)
        return build_engine(name, open_model(file), options.device)


def started(engine: Engine) -> tuple[Tracker, Iterator[tuple[Any, Any]]]:
    """A tracker on its target, and frame pairs without end."""
    first, *others = clip(8)
    tracker = Tracker(engine=engine)
    tracker.init(*first, BOX)
    return tracker, cycle([*others, first])


def end_to_end(engine: Engine) -> Callable[[], None]:
    """One call: the next pair of frames to a box."""
    tracker, pairs = started(engine)

    def step() -> None:
        tracker.box = BOX
        tracker.update(*next(pairs))

    return step


def frames_ahead(engine: Engine) -> Callable[[], None]:
    """One call: the next pair is handed over, then the result of the one before it is waited for."""
    tracker, pairs = started(engine)
    waiting: list[Pending[TrackResult]] = []

    def step() -> None:
        waiting.append(tracker.track_async(*next(pairs)))
        if len(waiting) > 1:
            waiting.pop(0).result()

    return step


def network_only(engine: Engine) -> Callable[[], None]:
    """One call: the network on random tensors that lie on the device."""
    sides = (engine.config.template_size, engine.config.search_size)
    # No image is in eight bits: engines of these precisions take what the rest of their network is in.
    dtype = {torch.int8: torch.float32, torch.float8_e4m3fn: torch.bfloat16}.get(engine.dtype, engine.dtype)
    images = [torch.randn(2, 1, 3, side, side, device=engine.device, dtype=dtype) for side in sides]

    def step() -> None:
        engine.run_network(*images)

    return step


def measure(step: Callable[[], None], count: int, *, on_gpu: bool, awaited: bool) -> list[float]:
    """Milliseconds per call. `awaited`: a call returns when its work is done; else one synchronisation at the end."""
    if on_gpu and not awaited:
        return queued_ms(step, count)
    times = []
    for _ in range(count):
        start = time.perf_counter()
        step()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def compare(options: argparse.Namespace, config: ModelConfig) -> bool:
    """Measure the engines in turns; whether all run here. Those that do not are left out, which "all" allows."""
    everything = any(name == "all" for name, _ in options.engine)
    wanted = [(name, None) for name in ENGINES] if everything else options.engine
    model = load_model("random", config)
    engines: dict[str, Engine] = {}
    all_run = True
    seconds: dict[str, float | None] = {}
    for name, dtype in wanted:
        start = time.perf_counter()
        try:
            engine = build(options, model, name, dtype)
        except EngineError as error:
            if len(wanted) == 1:
                raise
            print(f"left out: {error}")
            all_run = everything
            continue
        key = f"{name} {dtype or name_of(engine.dtype)}"
        engines[key] = engine
        seconds[key] = time.perf_counter() - start
    if not engines:
        raise EngineError("none of these engines runs here")
    device = str(next(iter(engines.values())).device)
    work, ceilings = 0.0, dict[torch.dtype, float]()
    if options.peers:
        import peers

        if device != "cpu":
            refuse(f"--peers compares runtimes on a CPU, not on {device}")
        dtypes = {engine.dtype for engine in engines.values()}
        found = peers.peers(model, sorted(dtypes, key=str))
        engines |= found
        seconds |= dict.fromkeys(found)
        work = peers.executed_gflop(model)
        ceilings = {dtype: peers.ceiling_gflops(dtype) for dtype in dtypes}
    about = {"machine": machine(device), "arguments": used(options)}
    protocols = PROTOCOLS if options.protocol == "all" else (options.protocol,)
    results: list[Result] = []
    for protocol in protocols:
        rows = in_turns(options, protocol, engines, seconds)
        if options.peers:
            again = {dtype: peers.ceiling_gflops(dtype, lambda _line: None) for dtype in ceilings}
            ceilings = {dtype: max(rate, again[dtype]) for dtype, rate in ceilings.items()}
            best = {name_of(dtype): rate for dtype, rate in ceilings.items()}
            rows = [
                dataclasses.replace(row, ceiling_share=work / row.times.median_ms * 1e3 / best[row.dtype])
                for row in rows
            ]
        print_table(rows, device)
        results += rows
        save_json(options.json, {**about, "results": [dataclasses.asdict(row) for row in results]})
    written: dict[str, object] = {**about, "results": [dataclasses.asdict(row) for row in results]}
    if options.peers:
        written |= {"executed_gflop": work, "ceiling_gflops": {name_of(d): rate for d, rate in ceilings.items()}}
    write_json(options.json, written)
    return all_run


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def in_turns(
    options: argparse.Namespace, protocol: str, engines: dict[str, Engine], seconds: dict[str, float | None]
) -> list[Result]:
    """One protocol: all engines, a share of the iterations each, again and again."""
    make = {"end-to-end": end_to_end, "ahead": frames_ahead, "paper": network_only}[protocol]
    steps = {name: make(engine) for name, engine in engines.items()}
    on_gpu = any(engine.device.type == "cuda" for engine in engines.values())
    for step in steps.values():
        for _ in range(options.warmup):
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    turns = min(TURNS, options.iterations) if len(steps) > 1 else 1
    for turn in range(turns):
        share = options.iterations // turns + (turn < options.iterations % turns)
        for name, step in steps.items():
            if len(steps) > 1:  # threads of the last engine's library may spin for a while yet, and caches are its own
                if not on_gpu:
                    time.sleep(SETTLING_SECONDS)
                step()
            times[name] += measure(step, share, on_gpu=on_gpu, awaited=protocol != "paper")
    results = []
    for name, engine in engines.items():
        found = percentiles(times[name])
        common = (protocol, options.model, options.elimination, name_of(engine.dtype))
        row = Result(engine.name, *common, fps=found.per_second, times=found, build_seconds=seconds[name])
        results.append(row)
    return results


def print_machine(device: str) -> None:
    about = machine(device)
    print(f"{about['device']}, {about['threads']} threads, torch {about['torch']}, commit {about['commit']}")


def print_table(results: list[Result], device: str) -> None:
    """A small table, the published figures beside ours."""
    first = results[0]
    print_machine(device)
    print(f"protocol {first.protocol}, random weights: speed only, no tracking\n")
    columns = f"{'best ms':>10}{'median ms':>11}{'p90 ms':>10}{'p99 ms':>10}{'ratio':>8}{'share':>8}"
    print(f"{'engine':<36}{'frames/s':>10}{columns}")
    for result in results:
        name, t = f"{result.engine} {result.model} {result.elimination} {result.dtype}", result.times
        row = f"{result.fps:>10.2f}{t.best_ms:>10.2f}{t.median_ms:>11.2f}{t.p90_ms:>10.2f}{t.p99_ms:>10.2f}"
        share = "" if result.ceiling_share is None else f"{100 * result.ceiling_share:>6.0f} %"
        print(f"{name:<36}{row}{first.times.median_ms / t.median_ms:>8.2f}{share}")
    if first.model != "base":
        return
    if first.protocol == "paper":
        print(f"{'as published, ViT-B':<36}{PUBLISHED_FPS[first.elimination]:>10.2f}   (device not stated)")
    known = AUTHORS_CPU_MS.get((first.protocol, first.elimination))
    if device == "cpu" and known:
        median, best = known
        row = f"{1e3 / median:>10.2f}{best:>10.2f}{median:>11.2f}"
        print(f"{'authors program, 2 cores':<36}{row}   (Xeon 2.5 GHz, torch 2.13, repaired copy, +-25 %)")


@contextmanager
def nvtx_range(name: str) -> Iterator[None]:
    """A range that profilers show, where the package is there."""
    try:
        import nvtx
    except ImportError:
        yield
        return
    with nvtx.annotate(name):
        yield


def stage_shares(options: argparse.Namespace, config: ModelConfig) -> None:
    """Time of every step, each awaited, summed into groups."""
    if len(options.engine) != 1 or options.engine[0][0] not in ("reference", "triton"):
        raise InputError("--no-graph observes one engine, reference or triton")
    engine = build(options, load_model("random", config), *options.engine[0])
    behaviour, given = TrackerConfig(), clip(8)
    form = first_pair(*given[0], behaviour).form
    pairs = [check_pair(rgb, tir, form, behaviour) for rgb, tir in given]
    target = engine.make_target(pairs[0], BOX)
    fused = {"norm"} if engine.name == "triton" else set()
    names = [name for name in step_names(config) if name not in fused]
    totals = dict.fromkeys(names, 0.0)
    for turn in range(options.warmup + options.iterations):
        last = time.perf_counter()
        order = iter((*names[1:], ""))
        ranges = nvtx_range(names[0])
        ranges.__enter__()

        def on_step(name: str, _value: torch.Tensor) -> None:
            nonlocal last, ranges
            if engine.device.type == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            if turn >= options.warmup:  # noqa: B023
                totals[name] += (now - last) * 1e3 / options.iterations
            last = now
            ranges.__exit__(None, None, None)
            ranges = nvtx_range(next(order))  # noqa: B023
            ranges.__enter__()

        engine.start([Search(target, BOX, config.search_factor)], pairs[turn % len(pairs)], on_step).result()
        ranges.__exit__(None, None, None)
    groups: dict[str, float] = {}
    for name, milliseconds in totals.items():
        kind = name.partition(".")[2] if name.startswith("block") else name.partition(".")[0]
        kind = {"scores": "elimination", "eliminate": "elimination"}.get(kind, kind)
        groups[kind] = groups.get(kind, 0.0) + milliseconds
    whole = sum(groups.values())
    device = str(engine.device)
    print_machine(device)
    print(f"{options.model} {options.elimination}, {engine}: {whole:.2f} ms a frame, every step awaited\n")
    for kind, milliseconds in groups.items():
        print(f"{kind:<14}{milliseconds:>10.2f} ms{100 * milliseconds / whole:>8.1f} %")
    written = {"arguments": used(options), "steps_ms": totals, "groups_ms": groups}
    write_json(options.json, {"machine": machine(device), **written})


if __name__ == "__main__":
    sys.exit(main())
