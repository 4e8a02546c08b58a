"""`ckd-fast completion`: a script that makes a shell complete subcommands and options."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ckd_fast.errors import EngineError

from .parsing import add_command

if TYPE_CHECKING:
    from .parsing import Commands


def add_completion(commands: Commands) -> None:
    """Declare the subcommand."""
    parser = add_command(
        commands,
        "completion",
        "print a script that makes a shell complete subcommands and options",
        '  eval "$(ckd-fast completion bash)"\n  ckd-fast completion zsh > ~/.zfunc/_ckd-fast',
    )
    parser.add_argument("shell", choices=("bash", "zsh"))
    parser.set_defaults(run=run_completion)


def run_completion(options: argparse.Namespace) -> int:
    """`ckd-fast completion`."""
    from . import build_parser

    try:
        import shtab
    except ImportError as error:
        raise EngineError("shell completion needs shtab: pip install 'ckd_fast[completion]'") from error

    print(shtab.complete(build_parser(), shell=options.shell))
    return 0
