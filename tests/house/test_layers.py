"""Imports point one way: kernels and reference know only their libraries, ckd_fast knows both, nobody knows bench."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from support import ROOT

# Third-party packages that a folder may import at all, besides the standard library.
ALLOWED = {
    "kernels": {"torch", "triton"},
    "reference": {"torch", "numpy", "cv2"},
    "ckd_fast": {
        "torch", "numpy", "cv2", "safetensors", "nvtx", "tqdm", "shtab", "matplotlib", "openvino", "onnx",
        "onnxruntime", "onnxscript", "onnx_ir", "google", "trax", "ray",
        "typing_extensions", "ckd_fast",
    },
}  # fmt: skip
FILES = {folder: sorted((ROOT / folder).rglob("*.py")) for folder in ALLOWED}
# Without ckd_fast/kernels and ckd_fast/reference, which are links.
OURS = [path for path in FILES["ckd_fast"] if not {"kernels", "reference"} & set(path.relative_to(ROOT).parts[1:2])]
Graph = dict[str, set[str]]


def running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes, those inside functions too, without `if TYPE_CHECKING:`, which never runs."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")):
            yield node
            yield from running(node)


def imported_names(path: Path, nodes: Callable[[ast.AST], Iterable[ast.AST]] = ast.walk) -> set[str]:
    """What a file imports, by full name: `package.module.name` for `from package.module import name`."""
    found: set[str] = set()
    for node in nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            folder = path.parent.relative_to(ROOT).parts
            parts = [*folder[: len(folder) - node.level + 1], node.module] if node.level else [node.module]
            found |= {".".join((*filter(None, parts), alias.name)) for alias in node.names}
    return found


def import_graph(paths: Iterable[Path]) -> Graph:
    """Which module imports which when the code runs, inside functions too; not what only type checkers read."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    graph: Graph = {module: set() for module in modules}
    for module, path in modules.items():
        for name in imported_names(path, running):
            home = name if name in modules else name.rpartition(".")[0]
            graph[module] |= {home} & modules.keys() - {module}
    return graph


def between_rooms(graph: Graph) -> Graph:
    """The same between the folders and files directly under ckd_fast/."""
    rooms: Graph = {}
    for module, imported in graph.items():
        room = module.split(".")[1]
        rooms.setdefault(room, set()).update({other.split(".")[1] for other in imported} - {room})
    return rooms


def in_circles(graph: Graph) -> set[str]:
    """All that import themselves by way of others."""
    reach = {start: set(imported) for start, imported in graph.items()}
    for through in graph:
        for found in reach.values():
            if through in found:
                found.update(reach[through])
    return {start for start, found in reach.items() if start in found}


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_point_one_way(folder: str) -> None:
    assert FILES[folder], f"no Python files under {folder}"
    for path in OURS if folder == "ckd_fast" else FILES[folder]:
        for module in imported_names(path):
            top = module.split(".")[0]
            assert top in ALLOWED[folder] | {folder} | sys.stdlib_module_names, f"{path} imports {module}"
            if folder != "ckd_fast":
                assert top != "ckd_fast", f"{path} imports {module}: {folder} does not know ckd_fast"


def test_no_circles() -> None:
    graph = import_graph([path for path in OURS if path != ROOT / "ckd_fast" / "__init__.py"])
    assert "ckd_fast.multi" in graph["ckd_fast.adapters.vot"]
    assert in_circles(graph) == set()
    assert in_circles(between_rooms(graph)) == set()


def test_modules_import_from_homes() -> None:
    """The package's lazy names would hide circles from the test above."""
    homes = {path.relative_to(ROOT / "ckd_fast").parts[0].removesuffix(".py") for path in FILES["ckd_fast"]}
    for path in OURS:
        names = {name.split(".")[1] for name in imported_names(path, running) if name.startswith("ckd_fast.")}
        assert names <= homes | {"kernels", "reference", "__version__"}, path


def test_a_circle_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    sources = {
        "video/__init__.py": "",
        "video/loop.py": "def run():\n    from ckd_fast.adapters import rows",  # only when it runs
        "video/sources.py": "from ckd_fast.errors import InputError",
        "adapters/__init__.py": "from . import rows",
        "adapters/rows.py": "from ckd_fast.video.sources import read",
        "errors.py": "if TYPE_CHECKING:\n    from .video import loop",
    }
    paths = [tmp_path / "ckd_fast" / name for name in sources]
    for path, text in zip(paths, sources.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    graph = import_graph(paths)
    assert in_circles(graph) == set()
    assert in_circles(between_rooms(graph)) == {"video", "adapters"}
    paths[2].write_text("def read():\n    from ckd_fast.adapters.rows import row")
    assert in_circles(import_graph(paths)) == {"ckd_fast.adapters.rows", "ckd_fast.video.sources"}


def test_cv2_and_numpy_stay_in_preprocess() -> None:
    for path in FILES["reference"]:
        if {"cv2", "numpy"} & {m.split(".")[0] for m in imported_names(path)}:
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
