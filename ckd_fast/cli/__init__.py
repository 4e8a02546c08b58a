"""The command line: `ckd-fast SUBCOMMAND`, or `python -m ckd_fast SUBCOMMAND`.

Errors exit with code 2 and one line on standard error; Ctrl-C exits with 130.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stderr
from pathlib import Path
from typing import Any, TextIO, cast

from ckd_fast import __version__
from ckd_fast.errors import CkdFastError, EngineError

from .cache import add_cache
from .data import add_data
from .demo import add_demo
from .evaluate import add_eval
from .export import add_export
from .info import add_info
from .parsing import EXIT_INTERRUPTED, Messages, OneLineParser, add_command, silence
from .quantize import add_quantize
from .run import add_run
from .sample import add_sample
from .track import add_track
from .train import add_train
from .weights import add_weights

EXIT_BAD_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run the subcommand, return the exit code."""
    with ExitStack() as stack:
        # It is None if the caller closed it.
        stream = sys.stderr or stack.enter_context(Path(os.devnull).open("w"))
        stack.enter_context(redirect_stderr(cast("TextIO", Messages(stream))))
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    logging.basicConfig(format="ckd-fast: %(message)s", level=logging.WARNING)
    try:
        code: int = options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()
    except CkdFastError as error:
        sys.stderr.write(f"ckd-fast: {error}\n")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write("ckd-fast: interrupted\n")
        return EXIT_INTERRUPTED
    except (MemoryError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            silence(sys.stdout)  # the reader of the pipe has left, as `head` does
            return 0
        reason = str(error) or type(error).__name__
        sys.stderr.write(f"ckd-fast: {reason}\n")
        return EXIT_BAD_INPUT
    return code


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="ckd-fast", description="RGB-thermal single-object tracking.")
    parser.add_argument("--version", action="version", version=f"ckd-fast {__version__}")
    commands: Any = parser.add_subparsers(title="subcommands", required=True, metavar="SUBCOMMAND")
    adders = (
        add_demo, add_track, add_train, add_run, add_eval, add_data, add_sample, add_info, add_weights, add_export,
        add_quantize, add_cache,
    )  # fmt: skip
    for add in adders:
        add(commands)
    examples = '  eval "$(ckd-fast completion bash)"\n  ckd-fast completion zsh > ~/.zfunc/_ckd-fast'
    completion = add_command(commands, "completion", "print a shell script that completes options", examples)
    completion.add_argument("shell", choices=("bash", "zsh"))
    completion.set_defaults(run=lambda options: _print_completion(parser, options.shell))
    return parser


def _print_completion(parser: argparse.ArgumentParser, shell: str) -> int:
    try:
        import shtab
    except ImportError as error:
        raise EngineError("shell completion needs shtab: pip install 'ckd_fast[completion]'") from error
    print(shtab.complete(parser, shell=shell))
    return 0
