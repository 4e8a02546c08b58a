"""Imports point one way: kernels and reference know only their libraries, ckd_fast knows both, nobody knows bench."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from support import ROOT

# Third-party packages that a folder may import at all, besides the standard library.
ALLOWED = {
    "kernels": {"torch", "triton"},
    "reference": {"torch", "numpy", "cv2"},
    "ckd_fast": {
        "torch",
        "numpy",
        "cv2",
        "safetensors",
        "nvtx",
        "tqdm",
        "shtab",
        "matplotlib",
        "trax",
        "ray",
        "typing_extensions",
        "ckd_fast",
    },
}
FILES = {folder: sorted((ROOT / folder).rglob("*.py")) for folder in ALLOWED}


def absolute_imports(path: Path) -> set[str]:
    """Every module that a file imports, by full name; relative ones are resolved inside their folder."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = path.parent.relative_to(ROOT).parts
            prefix = ".".join(inside[: len(inside) - node.level + 1]) + "." if node.level else ""
            found.add(prefix + (node.module or ""))
    return found


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_point_one_way(folder: str) -> None:
    import sys

    assert FILES[folder], f"no Python files under {folder}"
    for path in FILES[folder]:
        if {"kernels", "reference"} & set(path.relative_to(ROOT / folder).parts[:1]):
            continue  # ckd_fast/kernels and ckd_fast/reference are links
        for module in absolute_imports(path):
            top = module.split(".")[0]
            assert top in ALLOWED[folder] | {folder} | sys.stdlib_module_names, f"{path} imports {module}"
            if folder != "ckd_fast":
                assert top != "ckd_fast", f"{path} imports {module}: {folder} does not know ckd_fast"


def test_cv2_and_numpy_stay_in_preprocess() -> None:
    for path in FILES["reference"]:
        if {"cv2", "numpy"} & {m.split(".")[0] for m in absolute_imports(path)}:
            assert path.name == "preprocess.py"


def test_folders_refuse_their_bare_names() -> None:
    import importlib.util

    for name in ("kernels", "reference"):
        spec = importlib.util.spec_from_file_location(name, ROOT / name / "__init__.py")
        assert spec is not None
        assert spec.loader is not None
        with pytest.raises(ImportError, match=f"ckd_fast.{name}"):
            spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_links_are_links() -> None:
    for name in ("kernels", "reference"):
        assert (ROOT / "ckd_fast" / name).is_symlink()
        assert (ROOT / "ckd_fast" / name).resolve() == ROOT / name
