"""`ckd-fast weights`: show what a weights file holds, or convert it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from .parsing import add_command

if TYPE_CHECKING:
    from .parsing import Commands


def add_weights(commands: Commands) -> None:
    summary = "show what a weights file holds, or convert it to safetensors"
    parser = add_command(
        commands,
        "weights",
        summary,
        "  ckd-fast weights inspect CKD_ep0025.pth.tar\n"
        "  ckd-fast weights convert CKD_ep0025.pth.tar ckd.safetensors --half float16",
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    inspect = add_command(
        verbs,
        "inspect",
        "check a weights file as loading does, and show what it holds; nothing in it is executed",
        "  ckd-fast weights inspect CKD_ep0025.pth.tar\n  ckd-fast weights inspect model.safetensors --json",
    )
    inspect.add_argument("file", metavar="FILE")
    inspect.set_defaults(run=run_weights_inspect)
    convert = add_command(
        verbs,
        "convert",
        "convert a weights file to safetensors, with sizes and provenance inside",
        "  ckd-fast weights convert CKD_ep0025.pth.tar ckd.safetensors\n"
        "  ckd-fast weights convert CKD_ep0025.pth.tar ckd-half.safetensors --half float16\n"
        "  ckd-fast weights convert stage1.pth.tar stage1.safetensors --teachers",
    )
    convert.add_argument("file", metavar="FILE")
    convert.add_argument("output", metavar="OUT.safetensors")
    convert.add_argument("--half", choices=("float16", "bfloat16"), help="store weights in half precision")
    convert.add_argument("--teachers", action="store_true", help="keep the teachers too, for further training")
    convert.add_argument(
        "--lost-threshold", type=float, metavar="S", help="store S as the calibrated threshold of these weights"
    )
    convert.add_argument("--force", action="store_true", help="overwrite OUT.safetensors")
    convert.set_defaults(run=run_weights_convert)
    for verb in (inspect, convert):
        verb.add_argument("--model", help="preset, if the file does not determine all sizes")
        verb.add_argument("--seed", type=int, help="seed of the random head, for files that hold an encoder only")
        verb.add_argument("--json", action="store_true", help="print as JSON")


def run_weights_inspect(options: argparse.Namespace) -> int:
    from ckd_fast.weights import inspect_weights

    found = inspect_weights(options.file, options.model, options.seed)
    if options.json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
        return 0
    config = found.config
    rows = {
        "file": f"{options.file} ({found.container})",
        "sha256": found.sha256,
        "kind": found.provenance.kind,
        "source": found.provenance.source,
        "model": f"{found.preset or 'no preset'}: {config.dim} channels, {config.depth} blocks, {config.heads} heads, "
        f"head {config.head_channels}, template {config.template_size}, search {config.search_size}",
        "elimination": f"{config.elimination} at {config.eliminate_at}, keep {config.keep_ratio}, "
        f"{config.template_range}",
        "teachers": "yes" if found.teachers else "no",
        "tensors": f"{found.tensors} ({', '.join(f'{count} {name}' for name, count in found.dtypes.items())}), "
        f"{found.parameters:,} values",
        "lost below": "not calibrated" if found.lost_threshold is None else f"{found.lost_threshold:g}",
        "int8": "not calibrated"
        if found.int8 is None
        else f"kept tokens {found.int8.kept:.3f}, box IoU "
        f"{found.int8.iou:.3f} with float32; in higher precision: {', '.join(found.in_float) or 'no layer'}",
        "not loaded": ", ".join(found.not_loaded) or "nothing",
    }
    for name, value in rows.items():
        print(f"{name:<12}{value}")
    return 0


def run_weights_convert(options: argparse.Namespace) -> int:
    from ckd_fast.weights import convert_weights

    names = ("model", "seed", "half", "teachers", "lost_threshold", "force")
    model = convert_weights(options.file, options.output, **{name: getattr(options, name) for name in names})
    size = Path(options.output).stat().st_size
    if options.json:
        about = {"path": options.output, "bytes": size, "config": model.config.to_dict()}
        print(json.dumps(about | {"provenance": dataclasses.asdict(model.provenance)}))
        return 0
    print(f"{options.output}: {size / 1e6:.1f} MB, {model.provenance.kind}")
    return 0
