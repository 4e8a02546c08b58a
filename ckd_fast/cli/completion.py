"""`ckd-fast completion`: a script that makes a shell complete subcommands and options."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

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
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    parser.set_defaults(run=run_completion)


def run_completion(options: argparse.Namespace) -> int:
    """`ckd-fast completion`."""
    import shtab

    from . import build_parser

    print(shtab.complete(build_parser(), shell=options.shell))
    return 0
