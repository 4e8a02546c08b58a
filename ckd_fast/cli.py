"""The command line: `ckd-fast SUBCOMMAND`; each subcommand is one function.

Bad input ends with exit code 2 and one line on standard error.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from . import __version__
from .errors import CkdFastError

EXIT_BAD_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run the subcommand, return the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
    except CkdFastError as error:
        print(f"ckd-fast: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("ckd-fast: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe left, as `head` does
        sys.stderr.close()
        return 0
    return code


def build_parser() -> argparse.ArgumentParser:
    """All subcommands."""
    parser = argparse.ArgumentParser(prog="ckd-fast", description="RGB-thermal single-object tracking.")
    parser.add_argument("--version", action="version", version=f"ckd-fast {__version__}")
    commands = parser.add_subparsers(title="subcommands", required=True, metavar="SUBCOMMAND")
    _add_info(commands)
    _add_weights(commands)
    return parser


Commands = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _command(commands: Commands, name: str, summary: str, examples: str) -> argparse.ArgumentParser:  # type: ignore[valid-type]
    return commands.add_parser(  # type: ignore[attr-defined, no-any-return]
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_info(commands: Commands) -> None:  # type: ignore[valid-type]
    parser = _command(
        commands,
        "info",
        "parameters and multiply-accumulates of a model, per part and in total",
        "  ckd-fast info --model base\n"
        "  ckd-fast info --model base --elimination none\n"
        "  ckd-fast info --model tiny --json",
    )
    parser.add_argument("--model", default="base", help="preset: base, base-shared, small, tiny (default: base)")
    parser.add_argument("--elimination", choices=("mce", "ce", "none"), help="which search tokens are dropped")
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    parser.set_defaults(run=run_info)


def run_info(options: argparse.Namespace) -> int:
    """`ckd-fast info`."""
    from .errors import InputError
    from .reference.cost import model_cost
    from .weights.load import resolve_config

    config = resolve_config(options.model)
    if config is None:
        raise InputError("--model is empty")
    if options.elimination:
        config = dataclasses.replace(config, elimination=options.elimination)
    cost = model_cost(config)
    if options.json:
        parts = {
            part.name: {
                "parameters": part.parameters,
                "macs": part.macs,
                "norm_operations": part.norm_operations,
                "attention_macs": part.attention_macs,
            }
            for part in cost.parts
        }
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
        f"\nParameters: {cost.published_parameters:,} as published, of which {cost.unused_parameters:,} unused (class"
        " tokens and\nposition tables of a classifier that the authors' files carry; not loaded here)."
        "\nGMACs published: as thop 0.1.1 counts, that is linear layers and convolutions without biases, 4 per"
        "\noutput element of LayerNorm and BatchNorm, nothing for attention's matrix products."
        "\nWith attention: linear layers, convolutions and attention's two matrix products."
    )
    return 0


def _add_weights(commands: Commands) -> None:  # type: ignore[valid-type]
    summary = "look into a file of weights, or convert it to safetensors"
    parser = _command(
        commands,
        "weights",
        summary,
        "  ckd-fast weights inspect CKD_ep0025.pth.tar\n"
        "  ckd-fast weights convert CKD_ep0025.pth.tar ckd.safetensors --half float16",
    )
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")
    inspect = _command(
        verbs,
        "inspect",
        "what a file of weights holds, with every check that loading does; nothing in it is executed",
        "  ckd-fast weights inspect CKD_ep0025.pth.tar\n  ckd-fast weights inspect model.safetensors --json",
    )
    inspect.add_argument("file", metavar="FILE")
    inspect.add_argument("--model", help="preset that the file must be, where its sizes do not settle it")
    inspect.add_argument("--seed", type=int, help="for an encoder without a head: draw a random one")
    inspect.add_argument("--json", action="store_true", help="machine-readable output")
    inspect.set_defaults(run=run_weights_inspect)
    convert = _command(
        verbs,
        "convert",
        "write a file of weights as safetensors, with sizes and provenance inside",
        "  ckd-fast weights convert CKD_ep0025.pth.tar ckd.safetensors\n"
        "  ckd-fast weights convert CKD_ep0025.pth.tar ckd-half.safetensors --half float16\n"
        "  ckd-fast weights convert stage1.pth.tar stage1.safetensors --teachers",
    )
    convert.add_argument("file", metavar="FILE")
    convert.add_argument("output", metavar="OUT.safetensors")
    convert.add_argument("--model", help="preset that the file must be, where its sizes do not settle it")
    convert.add_argument("--seed", type=int, help="for an encoder without a head: draw a random one")
    convert.add_argument("--half", choices=("float16", "bfloat16"), help="store weights in half precision")
    convert.add_argument("--teachers", action="store_true", help="keep the teachers, to go on training")
    convert.add_argument("--force", action="store_true", help="overwrite OUT.safetensors")
    convert.set_defaults(run=run_weights_convert)


def run_weights_inspect(options: argparse.Namespace) -> int:
    """`ckd-fast weights inspect`."""
    from .weights import inspect_weights

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
        "not loaded": ", ".join(found.not_loaded) or "nothing",
    }
    for name, value in rows.items():
        print(f"{name:<12}{value}")
    return 0


def run_weights_convert(options: argparse.Namespace) -> int:
    """`ckd-fast weights convert`."""
    from .weights import convert_weights

    done = convert_weights(
        options.file,
        options.output,
        model=options.model,
        seed=options.seed,
        half=options.half,
        teachers=options.teachers,
        force=options.force,
    )
    print(f"{done.path}: {done.bytes_written / 1e6:.1f} MB, {done.model.provenance.kind}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
