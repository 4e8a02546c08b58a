"""`ckd-fast info`: parameters and multiply-accumulates of a model."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from ckd_fast.reference.config import PRESETS

from .parsing import add_command

if TYPE_CHECKING:
    from .parsing import Commands


def add_info(commands: Commands) -> None:
    parser = add_command(
        commands,
        "info",
        "show parameters and multiply-accumulates of a model, per part and in total",
        "  ckd-fast info --model base\n"
        "  ckd-fast info --model base --elimination none\n"
        "  ckd-fast info --model tiny --json",
    )
    parser.add_argument("--model", default="base", help=f"preset: {', '.join(PRESETS)} (default: base)")
    parser.add_argument(
        "--elimination", choices=("mce", "ce", "none"), help="how to drop search tokens (default: as the preset)"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=run_info)


def run_info(options: argparse.Namespace) -> int:
    from ckd_fast.errors import InputError
    from ckd_fast.reference.cost import model_cost
    from ckd_fast.weights.load import resolve_config

    config = resolve_config(options.model)
    if config is None:
        raise InputError("--model is empty")
    if options.elimination:
        config = dataclasses.replace(config, elimination=options.elimination)
    cost = model_cost(config)
    if options.json:
        parts = {}
        for about in map(dataclasses.asdict, cost.parts):
            parts[about.pop("name")] = about
        total = {
            "parameters": cost.published_parameters,
            "unused_parameters": cost.unused_parameters,
            "published_macs": cost.published_macs,
            "macs_with_attention": cost.macs_with_attention,
        }
        result = {"model": options.model, "config": config.to_dict(), "parts": parts, "total": total}
        print(json.dumps(result, indent=2))
        return 0
    print(f"{options.model}: {config.dim} channels, {config.depth} blocks, {config.heads} heads, ", end="")
    print(f"elimination {config.elimination}, one target in one frame pair\n")
    print(f"{'part':<18}{'parameters':>14}{'GMACs published':>18}{'with attention':>17}")
    for part in cost.parts:
        with_attention = (part.macs + part.attention_macs) / 1e9
        print(f"{part.name:<18}{part.parameters:>14,}{part.published / 1e9:>18.3f}{with_attention:>17.3f}")
    print(f"{'unused in files':<18}{cost.unused_parameters:>14,}")
    totals = f"{cost.published_macs / 1e9:>18.3f}{cost.macs_with_attention / 1e9:>17.3f}"
    print(f"{'total':<18}{cost.published_parameters:>14,}{totals}")
    print(
        f"\nParameters: {cost.published_parameters:,} as published. Of these, {cost.unused_parameters:,} are unused"
        " class tokens and\nposition tables in the authors' files; ckd_fast does not load them."
        "\nGMACs published: as thop 0.1.1 counts them. Linear layers and convolutions without biases, 4 per output"
        "\nelement of LayerNorm and BatchNorm, nothing for the matrix products of attention."
        "\nWith attention: linear layers, convolutions and both matrix products of attention."
    )
    return 0
