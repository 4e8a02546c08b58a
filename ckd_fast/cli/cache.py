"""`ckd-fast cache`: show or empty the cache of compiled models."""

from __future__ import annotations

import argparse
import os
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from .parsing import add_command, say

if TYPE_CHECKING:
    from .parsing import Commands


def add_cache(commands: Commands) -> None:
    parser = add_command(
        commands,
        "cache",
        "show the cache of compiled models: its folder, its entries and when each was last used",
        "  ckd-fast cache\n  ckd-fast cache --clear\n  CKD_FAST_CACHE=/fast/disk/ckd_fast ckd-fast cache",
    )
    parser.add_argument("--clear", action="store_true", help="remove all entries")
    parser.set_defaults(run=run_cache)


def run_cache(options: argparse.Namespace) -> int:
    from ckd_fast.cache import VARIABLE, user_cache

    cache = user_cache()
    if cache.folder is None:
        say(f"nothing is cached: {f'{VARIABLE} says so' if VARIABLE in os.environ else 'there is no home folder'}")
        return 0
    if cache.obstacle():
        say(f"{cache.folder} is not used, because it {cache.obstacle()}; {VARIABLE} can name another folder")
    entries = cache.clear() if options.clear else cache.entries()
    total = sum(entry.size for entry in entries)
    count = f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'}"
    if options.clear:
        say(f"{cache.folder}: removed {count}, {_megabytes(total)}")
        return 0
    say(f"{cache.folder}: {count}, {_megabytes(total)} of at most {_megabytes(cache.limit)}")
    if entries:
        say(f"\n{'size':>10}  {'last used':<16}  what")
    for entry in reversed(entries):
        say(f"{_megabytes(entry.size):>10}  {_when(entry.used):<16}  {entry.about}")
    return 0


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _when(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, tz=timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):  # a file may have any time
        return "unknown"
