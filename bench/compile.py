"""Compile the kernels for chips that are not here, and read what came out.

    python bench/compile.py                 # sm_90, bfloat16, one target
    python bench/compile.py --all           # seven chips, three precisions, 1 and 32 targets
    python bench/compile.py --arch 86 89 --dtype float16 --json out/compile.json
    python bench/compile.py --model packaged --arch 80 86 89 90 100 120

The chips of `--all` are sm_80, 86, 89, 90, 100, 120 and AMD gfx942. No GPU and no driver is needed: Triton brings its
own assembler and disassembler. Compiled is what the engine launches for a frame of the paper's model (`--model` names
another), in the tiles that it chooses on that chip, and the kernels beside a frame (other frames from cameras,
per-branch elimination, the fused losses). For each: stages, instructions, registers, spills, shared memory against what
a block of that chip may use, how many programs a multiprocessor holds at once, tensor-core instructions. Exit code 1
where a bound is broken: spills, too much shared memory, a matrix kernel without tensor cores in 16 bits.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # before triton is imported

import torch
import triton
from common import DTYPES, ROOT, commit, program, write_json
from plans import empty_build, frame_planner
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from ckd_fast import CkdFastError, load_model
from ckd_fast.engines import registry
from ckd_fast.kernels.distillation import Reading, distillation_backward, distillation_forward
from ckd_fast.kernels.elimination import gather
from ckd_fast.kernels.launch import Launch, LaunchSettings
from ckd_fast.kernels.layout import FrameKind
from ckd_fast.kernels.tiles import H200, Chip, chooser, scaled_chip
from ckd_fast.reference.config import PRESETS, ModelConfig

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
AMD = "gfx942"
# Multiprocessors of a usual chip of the kind, bytes of shared memory that one block may ask for, and warps that a
# multiprocessor holds.
CHIPS = {
    "sm_80": (108, 166912, 64), "sm_86": (84, 101376, 48), "sm_89": (128, 101376, 48), "sm_90": (132, 232448, 64),
    "sm_100": (148, 232448, 64), "sm_120": (170, 101376, 48), AMD: (304, 65536, 0),
}  # fmt: skip
REGISTERS, RESERVED_BYTES = 65536, 1024  # of a multiprocessor, for all programs; of its shared memory, by each program
ARCHITECTURES = tuple(int(name[3:]) for name in CHIPS if name != AMD)
MATRIX_INSTRUCTIONS = ("HGMMA", "UTCHMMA", "HMMA", "QGMMA", "QMMA")
MATRIX_KERNELS = ("linear", "attention", "convolution")
CAMERAS = (FrameKind(tir_channels=1, tir_wide=True, tir_map="scaled"), FrameKind(tir_map="homography"))


def no_device(target: GPUTarget, number: int) -> SimpleNamespace:
    """Takes the driver's place, so that launches compile and go no further; a number per chip keeps caches apart."""
    return SimpleNamespace(
        get_current_target=lambda: target, get_current_device=lambda: number,
        get_current_stream=lambda _device=None: 0, get_active_torch_device=lambda: torch.device("cpu"),
    )  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """One kernel on one chip."""

    launch: str
    chip: str
    dtype: str
    stages: int  # of the pipeline of loads, as asked for
    instructions: int
    registers: int  # of a thread
    spills: int
    shared: int  # bytes of a program
    per_multiprocessor: int  # programs that fit on one at once; 0 where that is not known
    matrix_instructions: int
    waits_for_producer: bool
    fetches_early: bool  # asks for weights before it waits
    seconds: float
    problem: str


def chip_of(name: str) -> Chip:
    """What the tile choice knows of a chip."""
    return H200 if name == "sm_90" else scaled_chip(name, *CHIPS[name][:2])


def launches(config: ModelConfig, dtype: torch.dtype, chip: str, targets: Sequence[int]) -> list[Launch]:
    """Every launch that the engine makes on a chip, and those beside a frame."""
    overlap = chip.startswith("sm_") and int(chip[3:]) >= 90
    settings = LaunchSettings(chooser(chip_of(chip)), overlap=overlap)
    build = empty_build(config, dtype, settings)
    found = [launch for count in targets for launch in frame_planner(build, count).plan().launches]
    found += frame_planner(build).others()
    for kind in CAMERAS:
        found += [launch for launch in frame_planner(build).plan(kind=kind).launches if launch.name == "crop"]
    per_branch = empty_build(replace(config, elimination="ce"), dtype, settings)
    found += [launch for launch in frame_planner(per_branch).plan().launches if launch.name.endswith("rank")]
    features = torch.empty(4, 16, config.template_tokens + config.search_tokens, config.dim, dtype=build.dtype)
    forward = distillation_forward(features, Reading())
    backward = distillation_backward(features, forward.out.moments, torch.ones(3), Reading())
    left = config.template_tokens + config.search_tokens_after(config.depth - 1)
    gathered = gather(features[:2], torch.zeros(2, 16, left, dtype=torch.int32))
    return [*found, *forward.launches, *backward.launches, *gathered.launches]


def compiled(launch: Launch) -> Any:
    """Triton's kernel for a launch on the chip whose driver is active; the only place that compiles without running."""
    return launch.kernel.warmup(**launch.arguments, **launch.options, grid=launch.grid)


@dataclass(frozen=True)
class Code:
    """What the assembler made of a kernel."""

    instructions: int
    registers: int  # of a thread
    spills: int
    matrix: int  # tensor-core instructions


def inspect_nvidia(kernel: Any) -> Code:
    """From the disassembly."""
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
    # A line per instruction begins with its address; behind the last one there is padding.
    every = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\w+)", code, re.MULTILINE)
    return Code(len(every) - every.count("NOP"), registers, spills, matrix)


def inspect_amd(kernel: Any) -> Code:
    """The same from AMD's assembly."""
    code = kernel.asm["amdgcn"]
    instructions = len(re.findall(r"^\t[sv]_\w+|^\t(?:buffer|global|ds)_\w+", code, re.MULTILINE))
    registers = max(map(int, re.findall(r"\.vgpr_count:\s+(\d+)", code)), default=0)
    spills = sum(map(int, re.findall(r"\.vgpr_spill_count:\s+(\d+)", code)))
    return Code(instructions, registers, spills, len(re.findall(r"v_mfma", code)))


def programs_at_once(code: Code, shared: int, warps: int, chip: str) -> int:
    """How many programs one multiprocessor holds; 0 on AMD, whose rules are others."""
    if chip == AMD:
        return 0
    _, shared_limit, most_warps = CHIPS[chip]
    warp_registers = -(-code.registers // 8) * 8 * 32
    return min(
        REGISTERS // (warp_registers * warps),
        (shared_limit + RESERVED_BYTES) // (shared + RESERVED_BYTES),
        most_warps // warps,
    )


def compile_all(found: Sequence[Launch], chip: str, dtype: str, tell: Callable[[Compiled], None]) -> list[Compiled]:
    """Compile launches for the driver that is active; what compiles to the same kernel is told once."""
    results: list[Compiled] = []
    seen: set[str] = set()
    for launch in found:
        start = time.perf_counter()
        kernel = compiled(launch)
        seconds = time.perf_counter() - start
        if kernel.hash in seen:
            continue
        seen.add(kernel.hash)
        code = inspect_amd(kernel) if chip == AMD else inspect_nvidia(kernel)
        shared, limit = int(kernel.metadata.shared), CHIPS[chip][1]
        problems = []
        if code.spills:
            problems.append(f"{code.spills} spills")
        if shared > limit:
            problems.append(f"shared memory {shared} of {limit}")
        if launch.kernel_name in MATRIX_KERNELS and dtype != "float32" and not code.matrix:
            problems.append("no tensor-core instructions")
        ptx = kernel.asm.get("ptx", "")
        waits, fetches = ptx.find("griddepcontrol.wait"), ptx.find("cp.async.bulk.prefetch.L2")
        done = Compiled(
            launch=f"{launch.name.split('.')[-1]} {launch.what}", chip=chip, dtype=dtype,
            stages=int(kernel.metadata.num_stages), instructions=code.instructions, registers=code.registers,
            spills=code.spills, shared=shared,
            per_multiprocessor=programs_at_once(code, shared, int(kernel.metadata.num_warps), chip),
            matrix_instructions=code.matrix, waits_for_producer=waits >= 0,
            fetches_early=0 <= fetches < waits, seconds=seconds, problem=", ".join(problems),
        )  # fmt: skip
        results.append(done)
        tell(done)
    return results


def main() -> int:
    parser = program(__doc__)
    parser.add_argument("--model", default="base", help="a preset, a file of weights, or 'packaged' (default: base)")
    parser.add_argument(
        "--dtype", nargs="+", choices=(*DTYPES, "float8"), default=["bfloat16"], help="default: bfloat16"
    )
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHITECTURES, default=[90], help="default: 90")
    parser.add_argument("--all", action="store_true", help="every chip, precision and 1 and 32 targets: half an hour")
    parser.add_argument("--targets", type=int, nargs="+", default=[1], help="targets in a frame (default: 1)")
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "compile.json", metavar="FILE")
    options = parser.parse_args()
    chips = [f"sm_{number}" for number in (ARCHITECTURES if options.all else options.arch)]
    chips += [AMD] if options.all else []
    dtypes, targets = (DTYPES, (1, 32)) if options.all else (options.dtype, options.targets)
    config = PRESETS.get(options.model)
    if config is None:
        try:
            config = load_model(None if options.model == "packaged" else options.model).config
        except CkdFastError as error:
            parser.error(f"--model {options.model}: none of {', '.join(PRESETS)}, and {error}")
    results: list[Compiled] = []
    print(f"triton {triton.__version__}, commit {commit()}")
    print(
        f"{'chip':<8}{'dtype':<10}{'launch':<52}{'stages':>8}{'code':>7}{'registers':>10}{'spills':>8}{'shared':>9}"
        f"{'at once':>9}{'matrix':>8}"
    )

    def tell(done: Compiled) -> None:
        row = f"{done.stages:>8}{done.instructions:>7}{done.registers:>10}{done.spills:>8}{done.shared:>9}"
        row += f"{done.per_multiprocessor:>9}{done.matrix_instructions:>8}"
        print(f"{done.chip:<8}{done.dtype:<10}{done.launch:<52}{row}  {done.problem}", flush=True)

    for number, chip in enumerate(chips):
        target = GPUTarget("hip", chip, 64) if chip == AMD else GPUTarget("cuda", int(chip[3:]), 32)
        driver.set_active(no_device(target, number))
        for dtype in dtypes:
            found = launches(config, registry.DTYPES[dtype], chip, targets)
            results += compile_all(found, chip, dtype, tell)
    bad = [result for result in results if result.problem]
    about = {"triton": triton.__version__, "commit": commit(), "model": options.model}
    write_json(options.json, {"machine": about, "results": [asdict(result) for result in results]})
    print(f"{len(results)} compiled, {len(bad)} with problems")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
