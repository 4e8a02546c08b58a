"""What the programs that a VOT toolkit starts have in common."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable

from ckd_fast.cli.parsing import OneLineParser, add_model_options, new_tracker
from ckd_fast.errors import CkdFastError
from ckd_fast.multi import MultiTracker


def toolkit_parser(module: str, description: str) -> OneLineParser:
    """Options of `python -m MODULE`: those of the model, as for `ckd-fast track`."""
    parser = OneLineParser(prog=f"python -m {module}", description=description)
    add_model_options(parser)
    return parser


def run_program(parser: OneLineParser, work: Callable[[MultiTracker, Namespace], object]) -> int:
    """Parse the options, build the tracker, do the work. Exit code 2 and one line on standard error if it fails."""
    options = parser.parse_args()
    try:
        work(new_tracker(MultiTracker, options), options)
    except CkdFastError as error:
        sys.stderr.write(f"ckd_fast: {error}\n")
        return 2
    return 0
