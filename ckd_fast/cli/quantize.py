"""`ckd-fast quantize`: calibrate weights for int8 on footage."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ckd_fast.errors import InputError, OutputError
from ckd_fast.files import refuse_overwrite, refuse_place

from .parsing import add_command, add_weights_options, box, positive, say

if TYPE_CHECKING:
    from ckd_fast.quantization import Clip
    from ckd_fast.types import Box

    from .parsing import Commands

GENERATED_CLIPS = 4
FIRST_SEED = 30_000  # of generated clips; those that judge models have others
LEAST_KEPT, LEAST_IOU = 0.93, 0.95


def add_quantize(commands: Commands) -> None:
    parser = add_command(
        commands,
        "quantize",
        "calibrate weights for int8 on your footage, and measure how well int8 follows float32",
        "  ckd-fast quantize --weights ckd.safetensors --out ckd-int8.safetensors\n"
        "  ckd-fast quantize --weights ckd.safetensors --clip day/visible day/infrared --init 120,80,40,90 \\\n"
        "      --clip night.mp4 night-ir.mp4 --init 300,200,64,64 --out ckd-int8.safetensors",
    )
    add_weights_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="OUT.safetensors", help="the file to write")
    parser.add_argument(
        "--clip", nargs=2, action="append", default=[], metavar=("VISIBLE", "INFRARED"),
        help="two folders of images or two videos; repeat for several (default: generated clips)",
    )  # fmt: skip
    parser.add_argument(
        "--init", type=box, action="append", metavar="x,y,w,h",
        help="the target in a clip's first frame, once per clip (default: what is in the middle)",
    )  # fmt: skip
    parser.add_argument(
        "--frames", type=positive, default=48, metavar="N", help="frames of each clip, the first N (default: 48)"
    )
    least = parser.add_argument_group("agreement with float32, on the last quarter of each clip")
    least.add_argument(
        "--least-kept", type=float, default=LEAST_KEPT, metavar="S",
        help=f"least share of kept search tokens that int8 keeps too (default: {LEAST_KEPT})",
    )  # fmt: skip
    least.add_argument(
        "--least-iou", type=float, default=LEAST_IOU, metavar="S",
        help=f"least median IoU of the boxes (default: {LEAST_IOU})",
    )  # fmt: skip
    least.add_argument("--write-anyway", action="store_true", help="write OUT even where the agreement is lower")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON, and nothing else")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    parser.set_defaults(run=run_quantize)


def run_quantize(options: argparse.Namespace) -> int:
    for name in ("least_kept", "least_iou"):
        if not 0 <= getattr(options, name) <= 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(options, name):g}: expected a number in [0, 1]")
    if options.out.suffix != ".safetensors":
        raise InputError(f"{options.out}: expected a name that ends in .safetensors")
    if options.init and len(options.init) != len(options.clip):
        raise InputError(
            f"{len(options.init)} times --init and {len(options.clip)} times --clip: expected one --init per --clip"
        )
    refuse_place(options.out)
    refuse_overwrite([options.out], force=options.force)

    from ckd_fast.quantization import Wanted, generated_clip, quantize
    from ckd_fast.weights import load_model, save_model

    model = load_model(options.weights, options.model, options.seed)
    if options.clip:
        boxes = options.init or [None] * len(options.clip)
        clips = [
            _footage(visible, infrared, start, options.frames)
            for (visible, infrared), start in zip(options.clip, boxes, strict=True)
        ]
        source = f"{_several(len(clips), 'clip')} of the user's"
    else:
        clips = [generated_clip(seed, options.frames) for seed in range(FIRST_SEED, FIRST_SEED + GENERATED_CLIPS)]
        source = f"{len(clips)} generated clips, seeds from {FIRST_SEED}"
    wanted = Wanted(options.least_kept, options.least_iou)
    made = quantize(model, clips, source, wanted, (lambda _text: None) if options.json else say)
    calibration = made.calibration
    assert calibration is not None  # noqa: S101 - `quantize` made it
    agreement = calibration.agreement
    found = f"kept tokens {agreement.kept:.4f}, box IoU {agreement.iou:.4f} on {agreement.frames} held-back frames"
    if not wanted.met_by(agreement) and not options.write_anyway:
        raise OutputError(
            f"{options.out}: not written: int8 follows float32 less closely than wanted: {found}; wanted "
            f"{wanted.kept:g} and {wanted.iou:g}. Calibrate on more footage, lower --least-kept or --least-iou, or "
            "--write-anyway"
        )
    from ckd_fast.engines.openvino.engine import int8_obstacle

    save_model(made, options.out)
    if options.json:
        about = {"path": str(options.out), "in_int8": len(calibration.in_int8), "in_float": calibration.in_float}
        print(json.dumps(about | {"frames": calibration.frames, "agreement": dataclasses.asdict(agreement)}))
        return 0
    say(f"{options.out}: {len(calibration.in_int8)} of {len(calibration.inputs)} layers in int8; {found}")
    obstacle = int8_obstacle()
    if obstacle:
        say(f"{obstacle}: here int8 is not faster than floats, and runs only with --dtype int8")
    return 0


def _several(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _footage(visible: str, infrared: str, start: Box | None, frames: int) -> Clip:
    """The first frames of a user's clip; frames that cannot be read are an error, they would calibrate nothing."""
    from ckd_fast.quantization import Clip
    from ckd_fast.video import open_source

    name = f"{visible} and {infrared}"
    with open_source(visible, infrared) as source:
        pairs = []
        for pair in itertools.islice(source, frames):
            if pair.rgb is None or pair.tir is None:
                raise InputError(pair.problem)
            pairs.append((pair.rgb, pair.tir))
    if not pairs:
        raise InputError(f"{name}: no frames")
    height, width = pairs[0][0].shape[:2]
    side = min(height, width) / 5
    return Clip.of(name, pairs, start or (width / 2 - side / 2, height / 2 - side / 2, side, side))
