"""Measure how closely bfloat16 and int8 follow float32: kept tokens, maps and boxes, frame by frame.

    python experiments/agreement.py --data SEQUENCES --json FILE
    python experiments/agreement.py --models small --frames 6

The packaged model, without elimination and with MCE, runs on real clips: each frame searched around float32's box, so
that errors do not add up, and once as a free track. `base` and `small` have random weights and run on generated clips.
Int8 is calibrated on other generated clips, with all layers in int8.

A precision is compared with float32 of the same program. Where the processor does not multiply bfloat16 by itself,
that is plain PyTorch, which rounds as such a processor does. "int8" is what this processor computes; "int8-emulated"
rounds weights to eight bits, as processors with VNNI do (those without use seven), and computes with the rounded values
in float32. "float32" is engine openvino beside plain PyTorch, two ways to compute the same: what rounding alone does to
these weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))  # for common.py, which finds ckd_fast

import numpy as np
import openvino
import torch
from common import machine, program, write_json

from ckd_fast import LoadedModel, load_model
from ckd_fast.boxes import iou
from ckd_fast.datasets import open_dataset
from ckd_fast.engines import Engine, build_engine
from ckd_fast.engines.openvino.engine import OpenVinoEngine, native_precision
from ckd_fast.engines.openvino.runtime import openvino_core
from ckd_fast.images import read_rgb, read_tir
from ckd_fast.quantization import (
    Clip,
    FrameAgreement,
    Seen,
    Wanted,
    compare,
    generated_clip,
    quantize,
    search_again,
    track,
)
from ckd_fast.reference.config import Elimination

MODELS = ("packaged-none", "packaged-mce", "small", "base")
CALIBRATION_SEED, SEED = 30_000, 40_000  # of generated clips
CALIBRATION_CLIPS = 4
ANY = Wanted(kept=0.0, iou=0.0)  # keep no layer in higher precision


class Emulated(OpenVinoEngine):
    """Int8 as processors with VNNI round it; products of the rounded values in float32."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__(model, torch.int8)
        if self._int8 is not None:
            self._int8 = dataclasses.replace(self._int8, narrow=False)
        self._properties["LP_TRANSFORMS_MODE"] = "NO"  # leaves the rounding operations as they are
        self._frames.clear()


@dataclass(frozen=True)
class Row:
    """One precision of one model on one kind of clips."""

    model: str
    precision: str
    engine: str
    beside: str  # the float32 that it is compared with
    clips: str
    frames: int
    kept: float  # mean share of float32's kept tokens that are kept too
    iou: float  # of the boxes, median; below mean and 5th percentile
    iou_mean: float
    iou_p5: float
    maps: float  # mean error of the maps, relative
    free_iou: float | None  # median over all frames of a free track; None: not tracked
    free_per_clip: dict[str, float]  # the same for each clip


def generated(count: int, frames: int, first_seed: int) -> list[Clip]:
    return [generated_clip(seed, frames) for seed in range(first_seed, first_seed + count)]


def real(root: Path, most: int | None) -> Iterator[Clip]:
    """The clips of a folder, one at a time."""
    dataset = open_dataset("folder", root)
    for name in dataset.names:
        sequence = dataset.sequence(name)
        files, box = sequence.frames(), sequence.boxes()[0]
        count = min(len(files.visible), len(files.infrared), most or len(files.visible))
        frames = ((read_rgb(files.visible[index]), read_tir(files.infrared[index])) for index in range(count))
        readable = [(rgb, tir) for rgb, tir in frames if rgb is not None and tir is not None]
        yield Clip.of(name, readable, box.tolist())


def calibrated(model: LoadedModel, frames: int) -> LoadedModel:
    clips = generated(CALIBRATION_CLIPS, frames, CALIBRATION_SEED)
    return quantize(model, clips, "generated clips", ANY, lambda text: print(f"  {text}", flush=True))


def judge(
    name: str, precision: str, engine: Engine, plain: Engine, clips: Sequence[Clip], seen: Sequence[list[Seen]],
    kind: str, *, free: bool,
) -> Row:  # fmt: skip
    found: list[FrameAgreement] = []
    tracks: dict[str, list[float]] = {}
    for clip, float32 in zip(clips, seen, strict=True):
        found += [compare(a, b) for a, b in zip(float32, search_again(engine, clip, float32), strict=True)]
        if free:
            boxes = [each.box for each in track(engine, clip)]
            tracks[clip.name] = iou(boxes, [each.box for each in float32]).tolist()
    overlaps = [frame.iou for frame in found]
    row = Row(
        name, precision, str(engine), str(plain), kind, len(found),
        kept=statistics.fmean(frame.kept for frame in found),
        iou=statistics.median(overlaps), iou_mean=statistics.fmean(overlaps), iou_p5=float(np.quantile(overlaps, 0.05)),
        maps=statistics.fmean(frame.maps for frame in found),
        free_iou=statistics.median(value for values in tracks.values() for value in values) if free else None,
        free_per_clip={clip: statistics.median(values) for clip, values in tracks.items()},
    )  # fmt: skip
    print(
        f"{name} {precision}: kept {row.kept:.4f}, IoU median {row.iou:.4f}, mean {row.iou_mean:.4f}, "
        f"p5 {row.iou_p5:.3f}, maps {row.maps:.4f}" + (f", free track {row.free_iou:.4f}" if free else ""), flush=True,
    )  # fmt: skip
    return row


def study(name: str, model: LoadedModel, clips: Sequence[Clip], kind: str, frames: int, *, free: bool) -> list[Row]:
    """All precisions of one model."""
    beside: dict[str, tuple[Engine, list[list[Seen]]]] = {}
    for engine_name in ("reference", "openvino"):
        engine = build_engine(engine_name, model, "cpu", "float32")
        beside[engine_name] = engine, [track(engine, clip) for clip in clips]
    with_ranges = calibrated(model, frames)
    bf16 = "openvino" if native_precision(openvino_core()) == torch.bfloat16 else "reference"
    makers: dict[str, tuple[str, Callable[[], Engine]]] = {
        "float32": ("reference", lambda: beside["openvino"][0]),
        "bfloat16": (bf16, lambda: build_engine(bf16, model, "cpu", "bfloat16")),
        "int8": ("openvino", lambda: build_engine("openvino", with_ranges, "cpu", "int8")),
        "int8-emulated": ("openvino", lambda: Emulated(with_ranges)),
    }
    rows = []
    for precision, (other, make) in makers.items():
        plain, seen = beside[other]
        rows.append(judge(name, precision, make(), plain, clips, seen, kind, free=free))
    return rows


def packaged(elimination: Elimination) -> LoadedModel:
    model = load_model(None)
    return dataclasses.replace(model, config=dataclasses.replace(model.config, elimination=elimination))


def main() -> None:
    parser = program(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of real clips (default: generated ones)")
    parser.add_argument("--frames", type=int, default=48, metavar="N", help="of each calibrating clip (default: 48)")
    parser.add_argument("--most", type=int, metavar="N", help="frames of each real clip (default: all)")
    parser.add_argument(
        "--random-frames", type=int, default=6, metavar="N",
        help="of each clip with random weights, calibrating or not (default: 6)",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads of PyTorch (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="result file")
    options: argparse.Namespace = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    for name in options.models:
        if name.startswith("packaged"):
            model = packaged("mce" if name == "packaged-mce" else "none")
            kind = "generated" if options.data is None else "real"
            clips = (
                generated(4, options.frames, SEED) if options.data is None else list(real(options.data, options.most))
            )
            rows += study(name, model, clips, kind, options.frames, free=True)
        else:
            few = options.random_frames
            model = load_model("random", name, seed=0)
            rows += study(name, model, generated(2, few, SEED), "generated", few, free=False)
        if options.json:  # a part is better than nothing
            about = machine("cpu") | {"openvino": openvino.get_version()}
            write_json(options.json, {"machine": about, "rows": [dataclasses.asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
