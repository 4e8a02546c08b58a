"""Does a frame run at all, and right? One way of launching it, against the reference; the first thing to try on a GPU.

    python bench/smoke.py eager --json out/smoke-eager.json       # launch by launch, without overlap
    python bench/smoke.py overlap --like out/smoke-eager.json     # launches overlap
    python bench/smoke.py graph --like out/smoke-eager.json       # and are replayed from a graph

Each way runs in a process of its own, because an error of the device ends a process's use of it. A check that fails
leaves its traceback in the result file, and the next check is tried. All ways compute the same bits: `--like` names the
result of another way, whose digests must be the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from common import BOX, DTYPES, ROOT, add_gpu_options, gpu_or_rehearsal, machine, program, save_json, used
from stage import DEVICE, GPU, config_of, engine_of, pairs
from torch import Tensor

from ckd_fast import TrackerConfig, load_model
from ckd_fast.boxes import iou
from ckd_fast.engines import Engine, Search
from ckd_fast.frames import RawPair, check_pair, first_pair

WAYS = {"eager": ("graphs", "overlap"), "overlap": ("graphs",), "graph": ()}  # what each leaves out
LEAST_IOU = 0.9  # of boxes on random weights; a wrong kernel gives boxes elsewhere
REPEATS = 30 if GPU else 2  # a race need not show at once


@dataclass(frozen=True)
class Check:
    """One check."""

    name: str
    passed: bool
    found: str  # in words
    digests: tuple[str, ...] = ()  # of results that must be the same bits in every way
    traceback: str = ""


@dataclass(frozen=True)
class Trial:
    """What the checks work on."""

    engine: Engine
    plain: Engine  # the reference in the same precision
    exact: Engine  # and in float32
    frames: list[RawPair]


def digest(*tensors: Tensor) -> str:
    """Of values, to compare them bit by bit."""
    content = b"".join(tensor.detach().float().cpu().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(content).hexdigest()[:16]


def steps(trial: Trial) -> Check:
    """Every step of a frame, launch by launch: finite, and up to the first elimination as close as the reference."""
    seen: list[dict[str, Tensor]] = []
    for engine in (trial.engine, trial.plain, trial.exact):
        values: dict[str, Tensor] = {}
        target = engine.make_target(trial.frames[0], BOX)
        keep = lambda name, value, values=values: values.__setitem__(name, value.detach().double().cpu())  # noqa: E731
        engine.start([Search(target, BOX, 4.0)], trial.frames[1], keep).result()
        seen.append(values)
    ours, plain, exact = seen
    bad = [name for name, value in ours.items() if not torch.isfinite(value).all()]
    if bad:
        return Check("steps", passed=False, found=f"not finite from {bad[0]} on")
    before = next((name for name in ours if name.endswith(".eliminate")), "")
    compared = list(ours)[: list(ours).index(before)] if before else list(ours)
    far = []
    for name in compared:
        scale = float(exact[name].abs().max())
        error, usual = (float((side[name] - exact[name]).abs().max()) / scale for side in (ours, plain))
        print(f"  {name:<24} error {error:.2e}, the reference in this precision {usual:.2e}", flush=True)
        if error > 2 * usual + 1e-5:
            far.append(f"{name}: {error:.2e} against {usual:.2e}")
    return Check("steps", not far, "; ".join(far) or f"{len(compared)} steps as close as the reference")


def network(trial: Trial) -> Check:
    """The network alone, again and again on the same images: the same bits each time."""
    config, found = trial.engine.config, []
    torch.manual_seed(0)
    images = [torch.randn(2, 1, 3, side, side) for side in (config.template_size, config.search_size)]
    for _ in range(REPEATS):
        maps = trial.engine.run_network(*(image.to(DEVICE, trial.engine.dtype) for image in images))
        found.append(digest(maps.score, maps.size, maps.offset))
    kinds = len(set(found))
    return Check("network", kinds == 1, f"{kinds} different results in {REPEATS} runs", tuple(found[:1]))


def boxes(trial: Trial) -> Check:
    """Frames end to end, against the float32 reference."""
    ours, theirs = (engine.make_target(trial.frames[0], BOX) for engine in (trial.engine, trial.exact))
    overlaps, found = [], []
    for frame in trial.frames[1:]:
        (one,) = trial.engine.start([Search(ours, BOX, 4.0)], frame).result()
        (true,) = trial.exact.start([Search(theirs, BOX, 4.0)], frame).result()
        overlaps.append(float(iou(one.box, true.box)))
        found.append(digest(torch.tensor([*one.box, one.score])))
    mean = sum(overlaps) / len(overlaps)
    told = f"mean IoU {mean:.4f} with the float32 reference in {len(overlaps)} frames; {trial.engine}"
    return Check("boxes", mean >= LEAST_IOU and "could not be captured" not in told, told, tuple(found))


CHECKS = (steps, network, boxes)


def checks(options: argparse.Namespace) -> Iterator[Check]:
    """One after the other, whatever happens in each."""
    model = load_model("random", config_of(options.model))

    def trial() -> Trial:
        engine = engine_of("triton", model, options.dtype, options.tiles, WAYS[options.way])
        plain, exact = (engine_of("reference", model, dtype, None) for dtype in (options.dtype, "float32"))
        given = pairs(20)
        form = first_pair(*given[0], TrackerConfig()).form
        return Trial(engine, plain, exact, [check_pair(rgb, tir, form, TrackerConfig()) for rgb, tir in given])

    made: list[Trial] = []

    def engine() -> Check:
        made.append(trial())
        return Check("engine", passed=True, found=str(made[0].engine))

    yield from guarded("engine", engine)
    for check in CHECKS if made else ():
        yield from guarded(check.__name__, partial(check, made[0]))


def guarded(name: str, check: Callable[[], Check]) -> Iterator[Check]:
    """A check; what it raises is how it failed."""
    try:
        yield check()
    except Exception as error:  # noqa: BLE001
        yield Check(name, passed=False, found=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())


def compared(check: Check, like: dict[str, list[str]]) -> Check:
    """The same check, failed if another way found other bits."""
    other = like.get(check.name, [])
    if not check.digests or list(check.digests) == other:
        return check
    if not other:
        return replace(check, found=f"{check.found}; nothing to compare its bits with")
    return Check(check.name, passed=False, found=f"other bits than the first way; {check.found}", digests=check.digests)


def main() -> int:
    parser = program(__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--model", default="base", help="preset of random weights (default: base)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--like", type=Path, metavar="FILE", help="result of another way")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: out/smoke-WAY.json")
    add_gpu_options(parser)
    options = parser.parse_args()
    gpu_or_rehearsal(options)
    torch.backends.cudnn.allow_tf32 = False  # the truth is float32 throughout
    path = options.json or ROOT / "out" / f"smoke-{options.way}.json"
    like: dict[str, list[str]] = {}
    if options.like and options.like.exists():
        like = {row["name"]: row["digests"] for row in json.loads(options.like.read_text())["rows"]}
    rows: list[Check] = []
    for found in checks(options):
        rows.append(found if options.like is None else compared(found, like))
        about = {"machine": machine(DEVICE.type), "arguments": used(options)}
        save_json(path, {**about, "rows": [asdict(row) for row in rows]})
        print(f"{'passed' if rows[-1].passed else 'FAILED'}  {rows[-1].name}: {rows[-1].found}", flush=True)
        if rows[-1].traceback:
            print(rows[-1].traceback, flush=True)
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
