"""Every kernel compiles for Hopper without a GPU: no spills, shared memory within bounds, tensor cores in use.

In a process of its own, since interpreted and compiled kernels cannot share one. All chips: `bench/compile.py --all`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support import run


def compile_kernels(tmp_path: Path, *arguments: str) -> list[dict]:
    command = (sys.executable, "bench/compile.py", "--json", tmp_path / "c.json", *arguments)
    done = run(*command, TRITON_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stdout + done.stderr
    results: list[dict] = json.loads((tmp_path / "c.json").read_text())["results"]
    return results


def test_hopper(tmp_path: Path) -> None:
    results = compile_kernels(tmp_path)
    found = {result["launch"]: result for result in results}
    assert {name.split()[0] for name in found} == {
        "crop", "patch", "qkv", "attention", "proj", "fc1", "fc2", "rank", "tap_products", "tap_sum",
        "convolution2", "convolution3", "maps", "decode", "distillation", "gather",
    }  # fmt: skip
    alone = {
        "crop 128 x 128, thermal same", "crop 256 x 256, thermal same", "crop 256 x 256, thermal homography",
        "crop 256 x 256, thermal scaled, 16 bits", "distillation forward 16 x 320 x 768",
        "distillation backward 16 x 320 x 768", "gather 153 of 320",
    }  # fmt: skip
    assert alone | {"rank 126 of 180, mce", "rank 126 of 180, ce", "decode 256 cells"} <= set(found)
    products = ("patch", "qkv", "attention", "proj", "fc1", "fc2", "tap_products", "convolution", "maps")
    for name, result in found.items():
        assert result["spills"] == 0
        assert result["registers"] <= 255
        assert result["matrix_instructions"] >= (4 if name.startswith(products) else 0), name
        # Every launch of a frame behind the first one begins before its producer has ended, and waits for it.
        assert result["waits_for_producer"] == (name not in alone), name
        layers = ("patch", "qkv", "proj", "fc1", "fc2", "tap_products")
        assert result["fetches_early"] == name.startswith(layers), name


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_hopper_in_float8(tmp_path: Path) -> None:
    for result in compile_kernels(tmp_path, "--dtype", "float8"):
        assert result["spills"] == 0
        if "float8" in result["launch"]:
            assert result["matrix_instructions"] >= 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_chip(tmp_path: Path) -> None:
    results = compile_kernels(tmp_path, "--all")
    assert {result["chip"] for result in results} == {
        "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942",
    }  # fmt: skip
    assert {result["dtype"] for result in results} == {"bfloat16", "float16", "float32"}
