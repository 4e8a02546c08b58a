"""Compile the kernels for chips that are not here, and read what came out.

    python bench/compile.py                 # sm_90, every variant
    python bench/compile.py --all           # sm_80, 86, 89, 90, 100, 120 and AMD gfx942
    python bench/compile.py --arch 86 89 --json out/compile.json

No GPU and no driver is needed: Triton brings its own assembler and disassembler. For every variant of every kernel that
the paper's model uses: registers, spills, shared memory against what a block of that chip may use, and how many
tensor-core instructions there are. Exit code 1 where a bound is broken: spills, too much shared memory, or a matrix
kernel without tensor cores.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

os.environ["TRITON_INTERPRET"] = "0"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import triton
from common import ROOT, commit, write_json
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from ckd_fast.kernels import attention as attention_file
from ckd_fast.kernels import crop as crop_file
from ckd_fast.kernels import distillation as distillation_file
from ckd_fast.kernels import elimination as elimination_file
from ckd_fast.kernels import linear as linear_file
from ckd_fast.kernels.linear import FoldedLinear, RowStatistics, Tiles

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Bytes of shared memory that one block may ask for.
SHARED_LIMIT = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
ARCHITECTURES = tuple(SHARED_LIMIT)
AMD = "gfx942"
AMD_SHARED_LIMIT = 65536
MATRIX_INSTRUCTIONS = ("HGMMA", "UTCHMMA", "HMMA", "QGMMA")
BRANCHES, TARGETS, TOKENS, KEPT, TEMPLATE, DIM, HEADS = 2, 1, 320, 244, 64, 768, 12


class NoDevice:
    """Takes the driver's place, so that launches compile and go no further."""

    def __init__(self, target: GPUTarget, number: int) -> None:
        self.target, self.number = target, number

    def get_current_target(self) -> GPUTarget:
        """The chip to compile for."""
        return self.target

    def get_current_device(self) -> int:
        """One number per chip keeps Triton's caches apart."""
        return self.number

    def get_current_stream(self, _device: int | None = None) -> int:
        """Nothing runs on it."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Where the arguments lie."""
        return torch.device("cpu")


@dataclass(frozen=True)
class Compiled:
    """One kernel variant on one chip."""

    variant: str
    chip: str
    registers: int
    spills: int
    shared: int
    matrix_instructions: int
    seconds: float
    problem: str


@dataclass(frozen=True)
class Variant:
    """A launch of the paper's model; `launch` runs the project's own launcher."""

    name: str
    launch: Callable[[], object]
    matrix: bool


def variants(dtype: torch.dtype) -> list[Variant]:
    """Every launch that a frame of the paper's model makes, in one precision."""

    def empty(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=kind)

    def layer(
        features: int, depth: int, *, norm: bool = False, stats: bool = False, indexed: bool = False, **more: Any
    ) -> Callable[[], object]:
        tiles = Tiles()
        x = empty(BRANCHES, TARGETS, TOKENS, depth)
        weight, bias = empty(BRANCHES, features, depth), empty(BRANCHES, features, kind=torch.float32)
        tokens = KEPT if indexed else TOKENS
        out = empty(BRANCHES, TARGETS, tokens, features)
        arguments = dict(more)
        if norm:
            arguments["norm"] = FoldedLinear(weight, bias, bias, 1e-6)
            arguments["statistics"] = RowStatistics(
                empty(BRANCHES, TARGETS, TOKENS, depth // tiles.columns, 2, kind=torch.float32), tiles.columns
            )
        if stats:
            arguments["out_statistics"] = RowStatistics(
                empty(BRANCHES, TARGETS, tokens, features // tiles.columns, 2, kind=torch.float32), tiles.columns
            )
            arguments["residual"] = empty(BRANCHES, TARGETS, TOKENS, features)
        if indexed:
            arguments["rows"] = empty(BRANCHES, TARGETS, KEPT, kind=torch.int32)
        return lambda: linear_file.linear(x, weight, bias, out=out, tiles=tiles, **arguments)

    packed = empty(BRANCHES, TARGETS, TOKENS, 3 * DIM)
    q, k, v = packed.reshape(BRANCHES, TARGETS, TOKENS, 3, HEADS, DIM // HEADS).permute(3, 0, 1, 4, 2, 5)
    mask = torch.zeros(TARGETS, TEMPLATE, dtype=torch.bool)
    mask[:, 27] = True
    rows = attention_file.template_rows(mask)
    search = TOKENS - TEMPLATE
    probabilities = empty(BRANCHES, TARGETS, HEADS, 1, search, kind=torch.float32)
    positions = torch.zeros(BRANCHES, TARGETS, search, dtype=torch.int32)
    present = torch.ones(BRANCHES, TARGETS, dtype=torch.int32)
    kept_rows = torch.zeros(BRANCHES, TARGETS, KEPT, dtype=torch.int32)

    def rank(mode: Literal["mce", "ce"]) -> Callable[[], object]:
        return lambda: elimination_file.decide(
            probabilities,
            rows,
            positions,
            180,
            elimination=mode,
            present=present,
            place=positions.clone(),
        )

    features = empty(4, 16, TOKENS, DIM)
    upstream = torch.ones(3)
    reading = distillation_file.Reading()

    def distil() -> object:
        _, moments = distillation_file.distillation_forward(features, reading)
        return distillation_file.distillation_backward(features, moments, upstream, reading)

    def cut(kind: crop_file.FrameKind) -> Callable[[], object]:
        size, patch = 256, 16
        wide = torch.uint16 if kind.tir_wide else torch.uint8
        rgb, tir = empty(480 * 640 * 3, kind=torch.uint8), empty(480 * 640 * kind.tir_channels, kind=wide)
        tables = [
            empty(2, crop_file.GEOMETRY, kind=torch.float64),
            empty(TARGETS, crop_file.GIVEN, kind=torch.float64),
            empty(TARGETS, crop_file.STATE, kind=torch.float64),
        ]
        out = empty(BRANCHES, TARGETS, (size // patch) ** 2, 3 * patch * patch)
        return lambda: crop_file.crop(rgb, tir, *tables, present, out, kind=kind, size=size, patch=patch)

    attend = attention_file.attention
    return [
        Variant("crop: one size", cut(crop_file.FrameKind()), matrix=False),
        Variant(
            "crop: 16-bit thermal, scaled",
            cut(crop_file.FrameKind(tir_channels=1, tir_wide=True, tir_map="scaled")),
            matrix=False,
        ),
        Variant(
            "crop: thermal by homography",
            cut(crop_file.FrameKind(tir_map="homography")),
            matrix=False,
        ),
        Variant("qkv: norm", layer(3 * DIM, DIM, norm=True), matrix=True),
        Variant("proj: residual, statistics, split 2", layer(DIM, DIM, stats=True, split_k=2), matrix=True),
        Variant("proj of kept rows", layer(DIM, DIM, stats=True, indexed=True, split_k=2), matrix=True),
        Variant("fc1: norm, gelu", layer(4 * DIM, DIM, norm=True, gelu=True), matrix=True),
        Variant("fc2: residual, statistics, split 4", layer(DIM, 4 * DIM, stats=True, split_k=4), matrix=True),
        Variant("attention", lambda: attend(q, k, v), matrix=True),
        Variant(
            "attention with template rows",
            lambda: attend(q, k, v, rows=rows, probabilities=probabilities, template_tokens=TEMPLATE),
            matrix=True,
        ),
        Variant("rank, mce", rank("mce"), matrix=False),
        Variant("rank, ce", rank("ce"), matrix=False),
        Variant("distillation, batch 16", distil, matrix=False),
        Variant("gather", lambda: elimination_file.gather(packed, kept_rows), matrix=False),
    ]


def inspect_nvidia(kernel: Any) -> tuple[int, int, int]:
    """Registers, spill instructions and matrix instructions of a compiled kernel."""
    environment = {**os.environ, "PATH": f"{BINARIES}:{os.environ.get('PATH', '')}"}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()

        def dump(option: str) -> str:
            command = [str(BINARIES / "cuobjdump"), option, file.name]
            return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout

        registers = int(re.findall(r"REG:(\d+)", dump("-res-usage"))[0])
        code = dump("-sass")
    spills = len(re.findall(r"\s(?:STL|LDL)[.\s]", code))
    matrix = sum(len(re.findall(rf"\s{name}[.\s]", code)) for name in MATRIX_INSTRUCTIONS)
    return registers, spills, matrix


def inspect_amd(kernel: Any) -> tuple[int, int, int]:
    """The same from AMD's assembly."""
    code = kernel.asm["amdgcn"]
    registers = max(map(int, re.findall(r"\.vgpr_count:\s+(\d+)", code)), default=0)
    spills = sum(map(int, re.findall(r"\.vgpr_spill_count:\s+(\d+)", code)))
    return registers, spills, len(re.findall(r"v_mfma", code))


def compile_variant(variant: Variant, chip: str) -> list[Compiled]:
    """Run a launcher with compilation in place of execution."""
    from triton.runtime.jit import JITFunction

    found: list[tuple[str, Any]] = []

    original = JITFunction.run

    def only_compile(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> object:
        kernel = original(self, *arguments, grid=grid, warmup=True, **options)
        if not warmup:
            found.append((self.fn.__name__, kernel))
        return kernel

    start = time.perf_counter()
    with mock.patch.object(JITFunction, "run", only_compile):
        variant.launch()
    seconds = time.perf_counter() - start
    results = []
    for name, kernel in found:
        amd = chip.startswith("gfx")
        registers, spills, matrix = inspect_amd(kernel) if amd else inspect_nvidia(kernel)
        limit = AMD_SHARED_LIMIT if amd else SHARED_LIMIT[int(chip[3:])]
        shared = int(kernel.metadata.shared)
        problems = []
        if spills:
            problems.append(f"{spills} spills")
        if shared > limit:
            problems.append(f"shared memory {shared} of {limit}")
        if variant.matrix and not matrix and name in ("_linear_kernel", "_attention_kernel"):
            problems.append("no tensor-core instructions")
        label = f"{variant.name} ({name.strip('_').removesuffix('_kernel')})"
        results.append(Compiled(label, chip, registers, spills, shared, matrix, seconds, ", ".join(problems)))
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHITECTURES, default=[90], help="default: 90")
    parser.add_argument("--all", action="store_true", help="every NVIDIA chip and AMD gfx942")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "compile.json", metavar="FILE")
    options = parser.parse_args(arguments)
    chips = [f"sm_{number}" for number in (ARCHITECTURES if options.all else options.arch)]
    chips += [AMD] if options.all else []
    results: list[Compiled] = []
    print(f"triton {triton.__version__}, {options.dtype}, commit {commit()}")
    print(f"{'chip':<8}{'variant':<52}{'registers':>10}{'spills':>8}{'shared':>9}{'matrix':>8}")
    for number, chip in enumerate(chips):
        target = GPUTarget("hip", chip, 64) if chip == AMD else GPUTarget("cuda", int(chip[3:]), 32)
        driver.set_active(NoDevice(target, number))
        for variant in variants(getattr(torch, options.dtype)):
            for done in compile_variant(variant, chip):
                results.append(done)
                row = f"{done.registers:>10}{done.spills:>8}{done.shared:>9}{done.matrix_instructions:>8}"
                print(f"{chip:<8}{done.variant:<52}{row}  {done.problem}", flush=True)
    bad = [result for result in results if result.problem]
    about = {"triton": triton.__version__, "dtype": options.dtype, "commit": commit()}
    write_json(options.json, {"machine": about, "results": [asdict(result) for result in results]})
    print(f"{len(results)} compiled, {len(bad)} with problems; written to {options.json}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
