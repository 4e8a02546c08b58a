"""Write what docs/benchmarks.md says of GPUs, from the result files in bench/results/.

    python bench/report.py                # from bench/results/gpu-*.json
    python bench/report.py OUTDIR         # first bring the results of bench/gpu.sh there
    python bench/report.py --check        # exit code 1 if the page says something else

A file's name is gpu-DEVICE-SECTION.json. A table appears where its file is; nothing else states a GPU's figures.
"""

from __future__ import annotations

import json
import re
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common import ROOT, program, refuse

from ckd_fast.files import write_atomically

RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- written by bench/report.py: do not edit -->", "<!-- end -->"
NOTHING = "Nothing has been measured on a GPU yet.\n"
NAME = re.compile(r"gpu-(?P<device>.+)-(?P<section>smoke-\w+|fps-untuned|profile-untuned|[a-z]+)\.json")
Results = dict[str, dict[str, Any]]  # by section


def table(heads: Sequence[str], rows: Iterator[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def speed(results: Results) -> str:
    """Frames per second by engine and protocol."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for section in ("fps-untuned", "fps", "compiled"):
        for row in results.get(section, {}).get("results", ()):
            how = {"fps-untuned": ", tiles not tuned", "compiled": ", beside compiled"}.get(section, "")
            name = f"`{row['engine']}`{how if row['engine'] == 'triton' else ''}", row["dtype"]
            told = f"{row['times']['median_ms']:.3f} ({row['times']['best_ms']:.3f})"
            rows.setdefault(name, {})[row["protocol"]] = f"{told}, {row['fps']:.0f}"
    protocols = ("end-to-end", "ahead", "paper")
    heads = ("engine", "precision", *(f"{name}: ms median (best), frames/s" for name in protocols))
    return table(heads, ((*name, *(found.get(one, "") for one in protocols)) for name, found in rows.items()))


def many(results: Results) -> str:
    """Targets in one frame pair."""
    told = results["targets"]["result"]
    rows = (
        (row["targets"], f"{row['end_to_end']['median_ms']:.3f}", f"{row['network_ms']:.3f}",
         "" if row["share_of_matmul_ceiling"] is None else f"{100 * row['share_of_matmul_ceiling']:.0f} %")
        for row in sorted(told["rows"], key=lambda row: row["targets"])
    )  # fmt: skip
    heads = ("targets", "ms end to end", "ms network", f"share of {told['matmul_tflops']:.0f} TFLOP/s")
    return table(heads, rows)


def launches(results: Results) -> str:
    """The frame beside the library, and every launch of one target."""
    told = results["kernels"]
    whole = (
        (row["targets"], f"{row['ours_us']:.0f}", f"{row['library_us']:.0f}", row["library_calls"])
        for row in told["frames"]
    )
    rows = (
        (row["launch"], row["count"], *(f"{row[key]:.1f}" for key in ("warm_us", "cold_us", "floor_us")),
         *("" if row[key] is None else f"{row[key]:.1f}" for key in ("library_warm_us", "library_cold_us")))
        for row in told["launches"] if row["targets"] == 1
    )  # fmt: skip
    heads = ("launch", "times", "us warm", "us cold", "us floor", "us library warm", "us library cold")
    frames = table(("targets", "us of a frame's launches", "us of the library's products", "its routines"), whole)
    return frames + "\n" + table(heads, rows)


def agreement(results: Results) -> str:
    """Boxes and kept tokens against float32."""
    found = results["agreement"]["result"].items()
    keys = ("mean_iou", "least_iou", "same_cell", "kept")
    heads = ("engine and precision", "mean IoU", "least IoU", "same cell", "kept tokens")
    rows = ((name, *(f"{row[key]:.4f}" for key in keys)) for name, row in found)
    return table(heads, rows)


def energy(results: Results) -> str:
    """Joules a frame."""
    told = results["energy"]["result"]
    rows = ((row["engine"], f"{row['joules_a_frame']:.4f}", f"{row['watts']:.0f}") for row in told["rows"])
    return table(("engine and precision", "J a frame", f"W (idle {told['idle_watts']:.0f})"), rows)


def checked(results: Results) -> str:
    """Tests, sanitizer and first frames in words."""
    said = []
    if "parity" in results:
        told = results["parity"]
        said.append(f"tests of kernels and engine: {told['passed']} passed, {told['failed']} failed, "
                    f"{told['skipped']} skipped, {told['not_run']} not run")  # fmt: skip
    for name, found in results.get("sanitize", {}).get("checks", {}).items():
        said.append(f"compute-sanitizer {name}: {found}")
    for name, found in results.get("first", {}).get("result", {}).items():
        said.append(f"first frame with a {name} kernel cache: {found['frames_ms'][0] / 1e3:.2f} s, engine "
                    f"{found['engine_s']:.1f} s")  # fmt: skip
    return "".join(f"- {line}\n" for line in said)


TABLES: tuple[tuple[tuple[str, ...], str, Callable[[Results], str]], ...] = (
    (("fps", "fps-untuned", "compiled"), "Frames per second, one target", speed),
    (("targets",), "Many targets in one frame pair", many),
    (("agreement",), "Boxes against the float32 reference", agreement),
    (("energy",), "Energy", energy),
    (("kernels",), "Launches", launches),
    (("parity", "sanitize", "first"), "Checks and starts", checked),
)


def read(folder: Path) -> dict[str, Results]:
    """All result files by device and section."""
    found: dict[str, Results] = {}
    for path in sorted(folder.glob("gpu-*.json")):
        match = NAME.fullmatch(path.name)
        if match is None:
            refuse(f"{path}: expected gpu-DEVICE-SECTION.json")
        found.setdefault(match["device"], {})[match["section"]] = json.loads(path.read_text())
    return found


def section(results: Results) -> str:
    """All tables of one device."""
    about = next(iter(results.values()))["machine"]
    commits = ", ".join(dict.fromkeys(result["machine"]["commit"] for result in results.values()))
    versions = (
        f"torch {about['torch']}, Triton {about.get('triton', 'unknown')}, driver {about.get('driver', 'unknown')}"
    )
    lines = [f"### {about['device']}\n\n{versions}, {about['date'][:10]}, commit {commits}.\n"]
    for needed, title, write in TABLES:
        if any(name in results for name in needed):
            lines.append(f"\n**{title}**\n\n{write(results)}")
    return "".join(lines)


def written(folder: Path) -> str:
    """What stands between the marks."""
    found = read(folder)
    return "\n".join(section(results) for results in found.values()) if found else NOTHING


def page_with(text: str, page: str) -> str:
    """The page with another text between its marks."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"


def bring(out: Path, folder: Path) -> list[str]:
    """Take the results out of the archives of bench/gpu.py; their new names."""
    names = []
    for path in sorted(out.glob("part*.tar.gz")):
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                file = archive.extractfile(member)
                if file is None or not member.name.endswith(".json") or Path(member.name).stem.startswith("part"):
                    continue
                content = file.read().decode()
                told = json.loads(content)
                device = told["machine"]["device"]
                if told.get("arguments", {}).get("rehearse") == "True":
                    refuse(f"{path}: {member.name} comes from a rehearsal, whose figures mean nothing")
                slug = re.sub(r"[^a-z0-9]+", "-", device.lower().removeprefix("nvidia ")).strip("-")
                names.append(f"gpu-{slug}-{Path(member.name).stem}.json")
                write_atomically(folder / names[-1], content)
    return names


def main() -> int:
    parser = program(__doc__)
    parser.add_argument("out", nargs="?", type=Path, metavar="OUTDIR", help="of bench/gpu.sh")
    parser.add_argument("--check", action="store_true", help="write nothing; whether the page agrees")
    options = parser.parse_args()
    if options.out and options.check:
        refuse("--check writes nothing: leave OUTDIR out")
    for name in bring(options.out, RESULTS) if options.out else ():
        print(f"bench/results/{name}")
    page = PAGE.read_text()
    wanted = page_with(written(RESULTS), page)
    if options.check:
        return 0 if wanted == page else 1
    write_atomically(PAGE, wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
