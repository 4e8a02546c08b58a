"""bench/gpu.py without a GPU: limits, archives, what a section that is killed leaves, the rehearsal of everything."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import gpu
import parity
import pytest
import smoke
from support import INTERPRETED, ROOT, run

if not INTERPRETED:
    pytest.skip("on a GPU bench/gpu.sh runs them", allow_module_level=True)

WRITES = """
import sys, time
from pathlib import Path
sys.path.insert(0, {bench!r})
from common import save_json
for count in range(100000):
    save_json(Path(sys.argv[-1]), {{"rows": list(range(count + 1)), "filling": "x" * 200000}})
    print(count + 1, flush=True)
    time.sleep({pause})
"""


def program_that_writes(folder: Path, pause: float) -> str:
    path = folder / "writes.py"
    path.write_text(WRITES.format(bench=str(ROOT / "bench"), pause=pause))
    return str(path)


def a_stand(folder: Path, part: str = "1") -> gpu.Stand:
    for name in ("out", "work"):
        (folder / name).mkdir()
    return gpu.Stand(part, folder / "out", folder / "work", folder / "out" / "tiles.json")


def packed(stand: gpu.Stand, name: str) -> dict:
    with tarfile.open(stand.out / f"part{stand.part}.tar.gz") as archive:
        file = archive.extractfile(f"part{stand.part}/{name}")
        assert file is not None
        told: dict = json.loads(file.read())
        return told


def test_a_program_killed_at_any_moment_leaves_what_it_had(tmp_path: Path) -> None:
    """Each row that was told to be written is there, and the file is whole, whenever the kill comes."""
    program = program_that_writes(tmp_path, 0.0)
    for turn in range(8):
        result = tmp_path / f"{turn}.json"
        with subprocess.Popen([sys.executable, program, str(result)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.0131 * turn)
            process.kill()
            told = 1 + len(process.stdout.read().splitlines())
        rows = json.loads(result.read_text())["rows"]
        assert rows == list(range(len(rows)))
        assert len(rows) >= told


def test_a_section_out_of_time_leaves_what_it_had(tmp_path: Path) -> None:
    stand = a_stand(tmp_path)
    section = gpu.Section("rows", 1.0, (program_that_writes(tmp_path, 0.01),))
    part = gpu.Part(60, (section, dataclasses.replace(section, name="again", limit_s=6)))
    ended = gpu.run_part(part, stand, dict(os.environ), ["rows"])
    assert [one.outcome for one in ended] == ["out of time"]
    assert len(packed(stand, "rows.json")["rows"]) > 3
    told = json.loads((stand.out / "part1.json").read_text())
    assert told["sections"][0]["section"] == "rows"
    assert told == packed(stand, "part1.json")
    late = gpu.run_part(dataclasses.replace(part, limit_s=1.0), stand, dict(os.environ), ["again"])
    assert [one.outcome for one in late] == ["no time left"]


def test_results_of_an_earlier_run_are_not_packed(tmp_path: Path) -> None:
    stand, program = a_stand(tmp_path), tmp_path / "fails.py"
    program.write_text("raise SystemExit(1)")
    (stand.work / "rows.json").write_text('{"rows": [1]}')
    ended = gpu.run_part(gpu.Part(60, (gpu.Section("rows", 20, (str(program),)),)), stand, dict(os.environ))
    assert [one.outcome for one in ended] == ["failed"]
    with tarfile.open(stand.out / "part1.tar.gz") as archive:
        assert sorted(archive.getnames()) == ["part1/part1.json", "part1/rows.log"]


def test_told_to_end_it_packs_and_takes_its_section_along(tmp_path: Path) -> None:
    stand, program = a_stand(tmp_path), program_that_writes(tmp_path, 0.01)
    code = (
        f"import signal, sys, os; sys.path.insert(0, {str(ROOT / 'bench')!r}); import gpu; from pathlib import Path\n"
        f"signal.signal(signal.SIGTERM, gpu.told_to_end); stand = gpu.Stand('1', Path({str(stand.out)!r}), "
        f"Path({str(stand.work)!r}), Path('none'))\n"
        f"gpu.run_part(gpu.Part(60, (gpu.Section('rows', 60, ({program!r},)),)), stand, dict(os.environ))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    log = stand.work / "rows.log"
    while not (log.exists() and len(log.read_text().splitlines()) > 3):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert len(packed(stand, "rows.json")["rows"]) > 3
    lines = log.read_text()
    time.sleep(0.3)
    assert log.read_text() == lines


@pytest.mark.parametrize(("failing", "without"), [
    ({}, ""),
    ({"smoke-overlap": ["network"], "smoke-graph": ["network"]}, "graphs,overlap"),
    ({"smoke-graph": ["boxes"]}, "graphs"),
    ({"smoke-eager": ["steps"], "smoke-overlap": ["steps"], "smoke-graph": ["steps"]}, ""),  # not overlap's fault
    ({"smoke-overlap": None}, "overlap"),  # it came to no end
])  # fmt: skip
def test_what_fails_at_first_is_left_out_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: dict[str, list[str] | None], without: str
) -> None:
    stand, ran = a_stand(tmp_path), dict[str, str]()

    def section(
        section: gpu.Section, stand: gpu.Stand, _limit: float, environment: dict[str, str], *, rehearse: bool
    ) -> gpu.Ended:
        assert not rehearse
        ran[section.name] = environment.get("CKD_FAST_WITHOUT", "")
        failed = failing.get(section.name, [])
        rows = [{"name": name, "passed": name not in (failed or [])} for name in ("steps", "network", "boxes")]
        (stand.work / f"{section.name}.json").write_text(json.dumps({"rows": rows}))
        outcome = "passed" if failed == [] else "failed"
        return gpu.Ended(section.name, outcome, 1.0, 0, ran[section.name])

    monkeypatch.setattr(gpu, "run_section", section)
    gpu.run_part(gpu.PARTS["1"], stand, {})
    assert ran["smoke-graph"] == ("overlap" if "overlap" in without else "")
    assert ran["parity"] == ran["fps-untuned"] == without
    assert gpu.last_without(stand.out / "part1.json") == without


def test_parts_fit_into_their_leases() -> None:
    for name, seconds in (("1", 360), ("2", 540), ("3", 540)):
        part = gpu.PARTS[name]
        assert part.limit_s < seconds
        assert sum(section.limit_s for section in part.sections) <= part.limit_s
        for section in part.sections:
            assert (ROOT / "bench" / section.command[0]).exists()


def test_words_that_say_nothing(tmp_path: Path) -> None:
    for words in (["4", "out"], ["1"], ["1", "out", "tea"], ["--rehearse", "out", "tea"]):
        done = run("bash", "bench/gpu.sh", *words, PYTHON=sys.executable)
        assert done.returncode == 2
        assert "expected a part" in done.stderr or "required" in done.stderr
    done = run("bash", "bench/gpu.sh", "1", tmp_path / "out", "smoke-eager", "--work", tmp_path, PYTHON=sys.executable)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "smoke.py: measures on a GPU, and torch sees none" in done.stdout


def test_outcomes_count(tmp_path: Path) -> None:
    """A line that is being written counts later; the authors' track must not be skipped."""
    rows = [parity.Outcome(f"t::{kind}", kind, 1.0, "") for kind in ("passed", "failed", "skipped")]
    rows.append(parity.Outcome("t::test_the_authors_track[3]", "skipped", 1.0, "absent"))
    lines = [json.dumps(dataclasses.asdict(row)) for row in rows]
    (tmp_path / "0.jsonl").write_text("\n".join(lines) + "\n" + lines[0][:20])
    found = list(parity.outcomes(tmp_path))
    assert found == rows
    told = parity.Summary.of([row.test for row in rows] + ["t::never"], found)
    assert (told.tests, told.passed, told.failed, told.skipped, told.not_run) == (5, 1, 1, 2, 1)
    assert told.must_not_be_skipped == ["t::test_the_authors_track[3]"]
    assert not told.good
    assert parity.Summary.of(["t::passed"], rows[:1]).good
    assert not parity.Summary.of([rows[3].test], rows[3:]).good


def test_other_bits_fail() -> None:
    check = smoke.Check("network", passed=True, found="", digests=("a", "b"))
    assert smoke.compared(check, {"network": ["a", "b"]}) == check
    alone = smoke.compared(check, {})  # the first way died before this check
    assert (alone.passed, alone.found) == (True, "; nothing to compare its bits with")
    assert not smoke.compared(check, {"network": ["a", "c"]}).passed


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_rehearsal(tmp_path: Path) -> None:
    """All sections of all parts; each leaves its results in its part's archive, and few files travel."""
    out = tmp_path / "out"
    done = run("bash", "bench/gpu.sh", "--rehearse", "--work", tmp_path / "work", out, PYTHON=sys.executable)
    assert done.returncode == 0, done.stdout[-5000:]
    assert len(list(out.iterdir())) <= 8
    for name, part in gpu.PARTS.items():
        stand = gpu.Stand(name, out, tmp_path / "work", out / "tiles.json")
        for section in part.sections:
            if section.name != "tune":
                assert packed(stand, f"{section.name}.json")["machine"]["commit"]
    assert json.loads((out / "tiles.json").read_text())["measured"]
