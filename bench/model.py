"""What a frame costs on paper: every launch's products, bytes, tiles, waves, floor and estimate.

    python bench/model.py                          # base, one target, bfloat16, H200
    python bench/model.py --targets 32 --elimination none
    python bench/model.py --dtype float8           # qkv, proj, fc1 and fc2 in it, the rest in bfloat16

The launches are the engine's own; the chip is a handful of numbers (`kernels/tiles.py`). So this says where time must
go, not what it is. `floor` is the larger of products at the chip's measured matrix rate and bytes at its measured
memory rate; `estimate` adds tiles, waves, traffic from L2, and the starts, first loads and epilogues of programs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from common import ROOT, commit, frame_config, frame_program, used, write_json
from plans import empty_build, frame_planner

from ckd_fast.engines.registry import DTYPES
from ckd_fast.kernels.launch import Launch, LaunchSettings
from ckd_fast.kernels.tiles import H200, Chip, chooser, cost_of, programs_at_once

TARGET_MS = 0.40
COPY_US = 2.0  # of the result to the host, in a node of its own
PREFETCHED_US = 0.5  # of a first load that is spared where weights came to L2 while the launch in front still ran
OVERLAPPED_START_US = 0.7  # what is left of a launch's start when it begins before the one in front has ended


@dataclass(frozen=True)
class Row:
    """One launch on paper."""

    launch: str
    size: str
    programs: int
    waves: float
    tiles: str
    gflop: float
    megabytes: float
    floor_us: float
    estimate_us: float


def row_of(launch: Launch, chip: Chip) -> Row:
    cost, tiles = cost_of(launch, chip), ""
    if launch.choice is not None:
        chosen, split = launch.choice.tiles, launch.choice.split_k
        tiles = f"{chosen.rows}x{chosen.columns}x{chosen.depth}" + (f" /{split}" if split > 1 else "")
    return Row(
        launch.name, launch.what, launch.programs, cost.waves, tiles, launch.flops / 1e9, launch.bytes / 1e6,
        cost.floor_us, cost.estimate_us,
    )  # fmt: skip


def fetches_early(launch: Launch, chip: Chip) -> bool:
    """Whether a launch's programs find room beside those of the launch in front, and have weights to fetch."""
    if launch.request is None or launch.choice is None or launch.kernel_name != "linear":
        return False
    return programs_at_once(launch.choice.tiles, launch.request.dtype, chip) > 1


def main() -> None:
    parser = frame_program(__doc__)
    parser.add_argument("--targets", type=int, default=1, choices=(1, 2, 4, 8, 16, 32))
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "model.json", metavar="FILE")
    options = parser.parse_args()
    build = empty_build(frame_config(options), DTYPES[options.dtype], LaunchSettings(chooser(H200, table=[])))
    launches = frame_planner(build, options.targets).plan().launches
    rows = [row_of(launch, H200) for launch in launches]
    print(
        f"{options.model} {options.elimination}, {options.targets} target(s), {options.dtype}, on paper for {H200.name}"
    )
    print(
        f"{'launch':<20}{'size':<48}{'tiles':>16}{'programs':>9}{'waves':>7}{'GFLOP':>8}{'MB':>8}{'floor us':>10}"
        f"{'estimate':>10}"
    )
    for row in rows:
        numbers = f"{row.programs:>9}{row.waves:>7.2f}{row.gflop:>8.2f}{row.megabytes:>8.2f}"
        print(f"{row.launch:<20}{row.size:<48}{row.tiles:>16}{numbers}{row.floor_us:>10.2f}{row.estimate_us:>10.2f}")
    saved = len(rows) * (H200.start_us - OVERLAPPED_START_US)
    saved += PREFETCHED_US * sum(fetches_early(launch, H200) for launch in launches)
    floor, total = sum(row.floor_us for row in rows) / 1e3, (sum(row.estimate_us for row in rows) + COPY_US) / 1e3
    gflop, megabytes = sum(row.gflop for row in rows), sum(row.megabytes for row in rows)
    print(f"\n{len(rows)} launches, {gflop:.1f} GFLOP, {megabytes:.0f} MB")
    print(f"floor {floor:.3f} ms, estimate {total:.3f} ms, with launches that overlap {total - saved / 1e3:.3f} ms")
    if options.model == "base" and options.targets == 1:
        print(f"aim for the network at one target: {TARGET_MS:.2f} ms")
    summary = {"floor_ms": floor, "estimate_ms": total, "overlapped_ms": total - saved / 1e3, "launches": len(rows)}
    about = {"chip": asdict(H200), "commit": commit()}
    written = [asdict(row) for row in rows]
    write_json(options.json, {"machine": about, "arguments": used(options), "summary": summary, "launches": written})


if __name__ == "__main__":
    main()
