"""`ckd-fast export`: write a model as ONNX, for any runtime that reads it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from .parsing import add_command, add_weights_options

if TYPE_CHECKING:
    from .parsing import Commands


def targets(text: str) -> int | str:
    """A whole number from 1, or dynamic."""
    if text == "dynamic":
        return text
    if not (text.isascii() and text.isdigit() and int(text[:9])):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1, or dynamic")
    return int(text)


def add_export(commands: Commands) -> None:
    parser = add_command(
        commands,
        "export",
        "write a model as ONNX, and beside it NAME.template.onnx, which embeds templates",
        "  ckd-fast export --weights ckd.safetensors --out ckd.onnx\n"
        "  ckd-fast export --weights CKD_ep0025.pth.tar --out ckd.onnx --dtype float16 --targets dynamic\n"
        "  ckd-fast track visible/ infrared/ --init 120,80,40,90 --weights ckd.onnx --out run/\n"
        "docs/export.md shows how to run the files without ckd_fast.",
    )
    parser.add_argument("--out", required=True, metavar="FILE.onnx", help="file to write")
    add_weights_options(parser)
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32",
        help="precision of weights and arithmetic; inputs and outputs are float32 (default: float32)",
    )  # fmt: skip
    parser.add_argument(
        "--targets", type=targets, default=1, metavar="N", help="targets in one call: a number or dynamic (default: 1)"
    )
    parser.add_argument(
        "--crops", choices=("uint8", "normalised"), default="uint8",
        help="what the graph takes: RGB pixels, or normalised float32 (default: uint8)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="overwrite both files")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=run_export)


def run_export(options: argparse.Namespace) -> int:
    from ckd_fast.exporting import check_export, export_model
    from ckd_fast.weights import load_model

    check_export(options.out, options.dtype, options.targets, options.crops, force=options.force)
    model = load_model(options.weights, options.model, options.seed)
    done = export_model(
        model, options.out, dtype=options.dtype, targets=options.targets, crops=options.crops, force=options.force,
        on_progress=lambda text: sys.stderr.write(f"ckd-fast: {text}\n"),
    )  # fmt: skip
    if options.json:
        about = {"path": str(done.path), "template": str(done.template_path), "bytes": done.bytes}
        print(json.dumps(about | {"error": done.error, "seconds": done.seconds}))
        return 0
    print(
        f"{done.path}, {done.template_path.name}: {done.bytes / 1e6:.1f} MB in {done.seconds:.0f} s; "
        f"maps differ from the reference in float32 {'by at most' if options.dtype == 'float32' else 'on average by'} "
        f"{done.error:.1g}"
    )
    return 0
