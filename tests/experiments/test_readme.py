"""experiments/README.md: its links lead somewhere and its commands exist."""

from __future__ import annotations

import re

import ablation
import pytest
from support import ROOT

from ckd_fast.cli import build_parser
from ckd_fast.training import recipe

TEXT = (ROOT / "experiments" / "README.md").read_text()
PARTS = ["Table I:", "Table II:", "Table III:", "Table IV:", "Table V:", "Figure 4:", "Figure 5:", "Figure 6:"]


@pytest.mark.parametrize("part", PARTS)
def test_every_table_and_figure_has_a_command(part: str) -> None:
    rows = [line.split(" | ") for line in TEXT.splitlines() if line.startswith(f"| {part}")]
    assert rows
    for _, command, output in rows:
        assert re.search(r"`(ABLATION|ckd-fast|python (experiments|bench)/\w+\.py) ?", command)
        assert re.search(r"\]\(\S+\)|the same files", output)


def test_links_and_programs_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)", TEXT):
        assert (ROOT / "experiments" / link).exists(), link
    for program in re.findall(r"(?:experiments|bench)/\w+\.py", TEXT):
        assert (ROOT / program).is_file(), program
    listed = set(re.findall(r"^\| `(\w+\.py)` ", TEXT, re.MULTILINE))
    assert listed == {path.name for path in (ROOT / "experiments").glob("*.py")} - {"tsne.py"}


def test_commands_are_understood() -> None:
    known = {plan.name for plan in ablation.plan_rows(300, recipe("packaged"))}
    for rows in re.findall(r"ABLATION --rows ([\w -]+)`", TEXT):
        assert set(rows.split()) <= known
    for command in re.findall(r"`ckd-fast ((?:eval|info) [^`]*)`", TEXT):
        build_parser().parse_args(command.split())
