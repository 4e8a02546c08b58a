"""Everything that a GPU can say, from a plain checkout, in three parts that each fit into one short lease.

    bash bench/gpu.sh 1 OUTDIR                   # at most 6 minutes: does it run, is it right, how fast is it at first
    bash bench/gpu.sh 2 OUTDIR                   # 9 minutes: tiles for this GPU, then speed in all protocols with them
    bash bench/gpu.sh 3 OUTDIR                   # 9 minutes: agreement, many targets, torch.compile, sanitizer
    bash bench/gpu.sh 2 OUTDIR tune fps          # only these sections
    bash bench/gpu.sh --rehearse OUTDIR          # all code of all parts on the CPU at a small size

Each section is a process with a time limit of its own. One that fails or runs out of time does not stop the others; the
exit code is the number that did. Sections replace their result file after each row, so one that is killed leaves what
it had. OUTDIR gets partN.tar.gz (results and logs, packed again every few seconds), partN.json (how each section went)
and tiles.json; it never holds more than seven files. Part 3 uses the tiles that part 2 left in OUTDIR, or those of
`--tiles FILE`. If graphs or overlap fail in part 1 where plain launches do not, all later sections go without
(CKD_FAST_WITHOUT); parts 2 and 3 see that in OUTDIR.

Where .git does not travel, set CKD_FAST_COMMIT. For the authors' track put their numbers into .shared/golden or set
CKD_FAST_SHARED.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from common import ROOT, commit, program, save_json

from ckd_fast.files import atomically

PACK_EVERY_S = 10.0
LEAST_S = 5.0  # a section is not begun with less time left
REHEARSAL_S = 900.0  # for each section
TAIL_LINES = 15
SMOKE = {"smoke-overlap": "overlap", "smoke-graph": "graphs"}  # sections, and what to do without where they fail


@dataclass(frozen=True)
class Section:
    """A program of bench/ and how long it may take."""

    name: str
    limit_s: float
    command: tuple[str, ...]  # {out}: the folder for results, {tiles}: the table of tiles
    tuned: bool = False  # whether it takes the table as --tiles


@dataclass(frozen=True)
class Part:
    """Sections in order, and how long they may take together."""

    limit_s: float
    sections: tuple[Section, ...]


@dataclass(frozen=True)
class Ended:
    """How a section went."""

    section: str
    outcome: str  # passed, failed, out of time, no time left
    seconds: float
    exit_code: int | None
    without: str  # what engine triton did without, see CKD_FAST_WITHOUT


def smoke(way: str, limit_s: float) -> Section:
    like = () if way == "eager" else ("--like", "{out}/smoke-eager.json")
    return Section(f"smoke-{way}", limit_s, ("smoke.py", way, *like))


ENGINES = ("--protocol", "all", "--engine", "reference:float32", "reference:bfloat16", "triton")
WITH_FLOAT8 = (*ENGINES, "triton:float8")
COMPILED = ("--engine", "compiled:bfloat16", "triton", "--compile-mode", "max-autotune", "--protocol", "all")
# Limits: base takes 3 s to load, 3 s to pack and 13 s to compile in bfloat16 on a GPU machine's processor, with overlap
# and without each; 2 to 32 targets take 14 s more; every process imports for 5 s. Float8 takes as long
# calibrate. Kernels are compiled once for all sections of a machine.
PARTS = {
    "1": Part(350, (
        smoke("eager", 70), smoke("overlap", 55), smoke("graph", 35),
        Section("parity", 120, ("parity.py",)),
        Section("fps-untuned", 50, ("fps.py", *ENGINES, "--iterations", "200", "--warmup", "30")),
        Section("profile-untuned", 20, ("frames.py", "profile")),
    )),
    "2": Part(530, (
        Section("tune", 235, ("tune.py", "--targets", "1", "32", "--seconds", "210", "--table", "{tiles}"), tuned=True),
        Section("fps", 95, ("fps.py", *WITH_FLOAT8, "--iterations", "1000", "--warmup", "100"), tuned=True),
        Section("profile", 25, ("frames.py", "profile"), tuned=True),
        Section("kernels", 75, ("kernels.py",), tuned=True),
        Section("energy", 40, ("frames.py", "energy"), tuned=True),
        Section("first", 60, ("frames.py", "first"), tuned=True),
    )),
    "3": Part(530, (
        Section("agreement", 110, ("frames.py", "agreement"), tuned=True),
        Section("targets", 60, ("frames.py", "targets"), tuned=True),
        Section("compiled", 275, ("fps.py", *COMPILED, "--iterations", "400", "--warmup", "30"), tuned=True),
        Section("sanitize", 85, ("sanitize.py",)),
    )),
}  # fmt: skip


@dataclass(frozen=True)
class Stand:
    """Where one part's results go."""

    part: str
    out: Path  # what travels: a few files
    work: Path  # results and logs, packed into `out`
    tiles: Path  # read and written

    def pack(self) -> None:
        """All results and logs so far, as one file that is replaced as a whole."""
        with atomically(self.out / f"part{self.part}.tar.gz") as new, tarfile.open(new, "w:gz") as archive:
            for file in sorted(self.work.iterdir()):
                if file.suffix in (".json", ".log"):
                    archive.add(file, f"part{self.part}/{file.name}")


def run_section(
    section: Section, stand: Stand, limit_s: float, environment: dict[str, str], *, rehearse: bool
) -> Ended:
    """A section as a process group that is killed when its time is over; results are packed while it runs."""
    filled = [word.format(out=stand.work, tiles=stand.tiles) for word in section.command]
    command = [sys.executable, str(ROOT / "bench" / filled[0]), *filled[1:]]
    command += ["--json", str(stand.work / f"{section.name}.json")] if section.name != "tune" else []
    command += ["--tiles", str(stand.tiles)] if section.tuned and stand.tiles.exists() else []
    command += ["--rehearse"] if rehearse else []
    without, begin = environment.get("CKD_FAST_WITHOUT", ""), time.monotonic()
    print(f"== {section.name} (at most {limit_s:.0f} s)", flush=True)
    log = stand.work / f"{section.name}.log"
    (stand.work / f"{section.name}.json").unlink(missing_ok=True)  # of an earlier run
    with log.open("wb") as file:
        # A group, to be killed together, but no session: whoever ends ours must find it.
        child = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment,
            preexec_fn=os.setpgrp,  # noqa: PLW1509
        )  # fmt: skip
        try:
            in_time = waited(child, begin + limit_s, stand.pack)
        finally:  # also where this program is told to end
            kill_group(child)
            stand.pack()
    took, code = time.monotonic() - begin, child.returncode
    outcome = ("passed" if code == 0 else "failed") if in_time else "out of time"
    lines = log.read_text(errors="replace").splitlines()
    print("\n".join(lines[-TAIL_LINES:]))
    print(f"== {section.name} {outcome}, {took:.0f} s", flush=True)
    return Ended(section.name, outcome, round(took, 1), code if in_time else None, without)


def waited(child: subprocess.Popen[bytes], deadline: float, pack: Callable[[], None]) -> bool:
    """Whether a process ended before its deadline."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            child.wait(min(PACK_EVERY_S, left))
        except subprocess.TimeoutExpired:
            pack()
        else:
            return True
    return False


def kill_group(child: subprocess.Popen[bytes]) -> None:
    """End a section and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def run_part(
    part: Part, stand: Stand, environment: dict[str, str], names: Sequence[str] = (), *, rehearse: bool = False
) -> list[Ended]:
    """All sections of a part, or those named; how each went is written after each."""
    deadline, ended = time.monotonic() + part.limit_s, list[Ended]()
    stand.work.mkdir(parents=True, exist_ok=True)
    for section in part.sections:
        if names and section.name not in names:
            continue
        left = deadline - time.monotonic()
        limit = REHEARSAL_S if rehearse else min(section.limit_s, left)
        if left < LEAST_S and not rehearse:
            ended.append(Ended(section.name, "no time left", 0.0, None, environment.get("CKD_FAST_WITHOUT", "")))
        else:
            ended.append(run_section(section, stand, limit, environment, rehearse=rehearse))
        usual = set().union(*(failed_checks(stand, one) for one in ended if one.section == "smoke-eager"))
        off = {SMOKE[one.section] for one in ended if one.section in SMOKE and failed_checks(stand, one) - usual}
        if off:
            environment = {**environment, "CKD_FAST_WITHOUT": ",".join(sorted(off))}
        about = {"commit": commit(), "rehearsal": rehearse, "sections": [asdict(one) for one in ended]}
        save_json(stand.out / f"part{stand.part}.json", about)
        save_json(stand.work / f"part{stand.part}.json", about)
        stand.pack()
    return ended


def failed_checks(stand: Stand, ended: Ended) -> set[str]:
    """Checks of bench/smoke.py that failed in a section; its end is one of them, where it did not come by itself."""
    path = stand.work / f"{ended.section}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    found = {row["name"] for row in rows if not row["passed"]}
    return found if found or ended.outcome == "passed" else {"end"}


def last_without(path: Path) -> str:
    """What the last section of a part did without."""
    sections = json.loads(path.read_text())["sections"]
    without: str = sections[-1]["without"] if sections else ""
    return without


def variables(*, rehearse: bool) -> dict[str, str]:
    """Of the sections' processes: one cache of compiled kernels; in a rehearsal no GPU and interpreted kernels."""
    found = {"TRITON_CACHE_DIR": str(ROOT / "out" / "kernel-cache"), **os.environ, "PYTHONUNBUFFERED": "1"}
    if rehearse:
        found |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
    return found


def told_to_end(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(143)


def main() -> int:
    parser = program(__doc__)
    parser.add_argument("--rehearse", action="store_true", help="all parts on the CPU at a small size")
    parser.add_argument("--tiles", type=Path, metavar="FILE", help="measured tiles (default: OUTDIR/tiles.json)")
    folder = ROOT / "out" / "gpu"
    parser.add_argument("--work", type=Path, default=folder, metavar="DIR", help="results and logs as they are written")
    parser.add_argument("words", nargs="+", metavar="PART OUTDIR [SECTION ...]", help="in a rehearsal without PART")
    options = parser.parse_args()
    parts, words = list(PARTS), options.words
    if not options.rehearse:
        parts, words = [words[0]], words[1:]
    names = words[1:]
    known = [section.name for part in parts for section in PARTS[part].sections] if set(parts) <= set(PARTS) else []
    if len(words) < 1 or not known or not set(names) <= set(known):
        parser.error(f"expected a part of {', '.join(PARTS)}, a folder and perhaps sections: {' '.join(known)}")
    signal.signal(signal.SIGTERM, told_to_end)
    out = Path(words[0]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    options.work = options.work.resolve()
    if commit() == "unknown":
        print("no commit is known here: set CKD_FAST_COMMIT, else nobody can tell what these results belong to")
    begin, failed = time.monotonic(), 0
    environment = variables(rehearse=options.rehearse)
    for name in parts:
        if name != "1" and (out / "part1.json").exists():  # what part 1 found not to work
            environment.setdefault("CKD_FAST_WITHOUT", last_without(out / "part1.json"))
        stand = Stand(name, out, options.work / f"part{name}", options.tiles or out / "tiles.json")
        ended = run_part(PARTS[name], stand, environment, names, rehearse=options.rehearse)
        failed += sum(one.outcome != "passed" for one in ended)
    print(f"== done in {time.monotonic() - begin:.0f} s, {failed} failed; results in {out}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
