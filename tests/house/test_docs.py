"""The documentation is about this house: what it links to, names and shows is there."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from support import ROOT

from ckd_fast.cli import build_parser

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/*.md")])
NAMED = re.compile(
    r"\b(?:bench|ckd_fast|docs|experiments|kernels|reference|scripts|tests)/[\w./-]*\.(?:py|json|sh|md)\b"
)
ids = [str(page.relative_to(ROOT)) for page in PAGES]
of_every_page = pytest.mark.parametrize("page", PAGES, ids=ids)


def links(page: Path) -> Iterator[tuple[str, Path, str]]:
    """Text, target and anchor of every link to a file of ours."""
    for text, link in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in link:
            target, _, anchor = link.partition("#")
            yield text, (page.parent / target).resolve() if target else page, anchor


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@cache
def symbols(path: Path) -> frozenset[str]:
    """What a module defines: functions, classes, constants, and members as `Class.member`."""
    found: set[str] = set()

    def collect(body: list[ast.stmt], owner: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(owner + node.name)
            if isinstance(node, ast.ClassDef):
                collect(node.body, f"{owner}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            found.update(owner + target.id for target in targets if isinstance(target, ast.Name))

    collect(ast.parse(path.read_text()).body, "")
    return frozenset(found)


@of_every_page
def test_links_lead_somewhere(page: Path) -> None:
    for text, target, anchor in links(page):
        assert target.exists(), f"[{text}] leads to {target}"
        assert not anchor or anchor in anchors(target), f"[{text}]: {target} has no heading {anchor}"


@of_every_page
def test_linked_symbols_are_defined_in_the_linked_file(page: Path) -> None:
    for text, target, _ in links(page):
        symbol = text.strip("`")
        if target.suffix == ".py" and text.startswith("`") and not symbol.endswith(".py"):
            assert symbol in symbols(target), f"{target.name} does not define {symbol}"


@of_every_page
def test_named_files_exist(page: Path) -> None:
    for name in set(NAMED.findall(page.read_text())):
        assert "NAME" in name or (ROOT / name).exists(), name


def test_the_walk_names_symbols() -> None:
    walk = [text for text, target, _ in links(ROOT / "docs" / "architecture.md") if target.suffix == ".py"]
    assert len(walk) >= 20  # else the tests above look for links of another form than the page has


def test_commands_are_understood() -> None:
    commands = re.findall(r"^    ckd-fast ([^#\n]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        build_parser().parse_args(command.split())


def test_the_readmes_python_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    program = tmp_path / "readme.py"
    program.write_text(block)
    runpy.run_path(str(program))
    assert len(capsys.readouterr().out.splitlines()) > 5


def test_the_glossary_is_short() -> None:
    rows = re.findall(r"^\| \*\*.+$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    assert 20 <= len(rows) <= 40
