"""`ckd-fast eval` as a user meets it: table, JSON, CSV, and the report in a real browser."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from commands import Command, Printed, by_module, unheard
from support import lay_out, shared_data

from ckd_fast.datasets import open_dataset
from ckd_fast.evaluation import evaluate
from ckd_fast.evaluation.report import html_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<img src=x onerror=alert(1)>&\"'"
# Scores per sequence: good is perfect, poor hits "walk" only.
SEQUENCES = {"walk": (10, 10, 20, 20), "run": (40, 30, 10, 30), "</script><b>": (5, 60, 30, 10)}


def folder_name(sequence: str) -> str:
    return sequence.replace("/", "_")  # a name of a file has no slash


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ground truths laid out like RGBT210, with attributes."""
    names = [folder_name(name) for name in SEQUENCES]
    boxes = zip(names, SEQUENCES.values(), strict=True)
    files = {f"groundtruth/{name}/init.txt": (",".join(map(str, box)) + "\n") * 4 for name, box in boxes}
    files["attr_txt/SequencesName.txt"] = "\n".join(names) + "\n"
    for attribute, flags in (("LI", "1\n1\n0\n"), ("BC", "0\n1\n1\n"), ("TC", "1\n0\n1\n")):
        files[f"attr_txt/{attribute}.txt"] = flags
    return lay_out(tmp_path / "RGBT210", files)


def results(folder: Path, hits: tuple[str, ...]) -> Path:
    folder.mkdir(parents=True)
    for name, (x, y, w, h) in SEQUENCES.items():
        row = (x, y, w, h) if name in hits else (x + 200, y, w, h)
        first = f"{x},{y},{w},{h}\n"
        (folder / f"{folder_name(name)}.txt").write_text(first + (",".join(map(str, row)) + "\n") * 3)
    return folder


@pytest.fixture
def both(tmp_path: Path) -> list[str]:
    good = results(tmp_path / "results" / "good", tuple(SEQUENCES))
    (good / "walk_time.txt").write_text("1\n0.02\n0.02\n0.02\n")
    poor = results(tmp_path / "results" / HOSTILE, ("walk",))
    return [str(poor), str(good)]


@pytest.fixture
def score(both: list[str], root: Path, command: Command) -> Command:
    """Score both trackers, or others."""

    def call(*more: object, trackers: list[str] = both) -> Printed:
        return command("eval", *trackers, "--dataset", "rgbt210", "--root", root, "--quiet", *more)

    return call


def test_table_json_and_csv(score: Command, tmp_path: Path) -> None:
    files = [tmp_path / "out" / name for name in ("s.json", "s.csv", "r.html")]
    told = score("--json", files[0], "--csv", files[1], "--html", files[2], "--attributes")
    assert told.code == 0
    table = [line.split() for line in told.out.splitlines()]
    assert table[1] == ["tracker", "PR", "NPR", "NPR_AUC", "SR", "sequences", "frames/s", "problems"]
    assert table[2] == ["1", "good", "100.0", "100.0", "100.0", "95.2", "3/3", "50.0", "0"]
    assert table[3][-8:] == [HOSTILE.rsplit(" ", maxsplit=1)[-1], "50.0", "50.0", "50.0", "47.6", "3/3", "-", "0"]
    assert ["BC", "2", "100.0/95.2", "25.0/23.8"] in table

    scores = json.loads(files[0].read_text())
    assert list(scores) == ["good", HOSTILE]
    poor = scores[HOSTILE]
    # The first row is given: a quarter of the frames hits everywhere.
    assert poor["overall"] == {"PR": 0.5, "NPR": 0.5, "NPR_AUC": 0.5, "SR": pytest.approx(0.5 * 20 / 21, abs=1e-6)}
    assert poor["attributes"]["BC"]["PR"] == 0.25
    assert {name: of["n"] for name, of in poor["attributes"].items()} == {"BC": 2, "LI": 2, "TC": 2}
    assert poor["sequences"]["walk"]["PR"] == 1
    assert poor["sequences"]["run"] == {
        "PR": 0.25, "NPR": 0.25, "NPR_AUC": 0.25, "SR": pytest.approx(0.25 * 20 / 21, abs=1e-6), "frames": 4,
        "present": True,
    }  # fmt: skip
    assert scores["good"]["fps"] == pytest.approx(50)
    assert (poor["fps"], poor["problems"]) == (None, [])
    assert "given-first-row" in poor["scoring"]["quirks"]

    rows = list(csv.DictReader(files[1].read_text().splitlines()))
    assert Counter(row["level"] for row in rows) == {"overall": 2, "attribute": 6, "sequence": 6}
    (overall,) = [row for row in rows if row["level"] == "overall" and row["tracker"] == HOSTILE]
    assert (overall["PR"], overall["SR"]) == ("0.500000", "0.476190")


def test_strict_ends_with_one_and_names_the_problem(score: Command, both: list[str], tmp_path: Path) -> None:
    (Path(both[0]) / "run.txt").unlink()
    told = score("--html", tmp_path / "r.html")
    assert told.code == 0
    for text in (told.err, (tmp_path / "r.html").read_text()):
        assert "missing sequence: no result of 1 of 3 sequences (run)" in text
    told = score("--strict")
    assert told.code == 1
    assert "because --strict was given" in told.err


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "pipe"])
def test_nobody_reads_but_files_and_exit_code_stay(both: list[str], root: Path, tmp_path: Path, closed: str) -> None:
    (Path(both[0]) / "run.txt").unlink()
    scores = tmp_path / "s.json"
    arguments = by_module("eval", *both, "--dataset", "rgbt210", "--root", root, "--strict", "--json", scores)
    how = {"broken": ("stdout", "stderr")} if closed == "pipe" else {"closed": closed}
    assert unheard(arguments, **how).returncode == 1
    assert set(json.loads(scores.read_text())) == {"good", HOSTILE}


def test_strict_without_problems_is_zero(command: Command) -> None:
    results, root = (shared_data("eval", name) for name in ("results/GTOT/MTNet", "groundtruth/GTOT"))
    assert command("eval", results, "--dataset", "gtot", "--quiet", "--root", root, "--strict").code == 0


def test_quirks_sequences_and_missing(score: Command, both: list[str], tmp_path: Path) -> None:
    def precision(*more: str) -> float:
        assert score("--json", tmp_path / "s.json", *more).code == 0
        return json.loads((tmp_path / "s.json").read_text())[HOSTILE]["overall"]["PR"]

    # The file itself holds the first box.
    assert precision("--strict-quirk", "given-first-row", "--sequences", "run") == 0.25
    (Path(both[0]) / "walk.txt").unlink()
    assert precision("--missing", "leave-out") == 0.25
    assert precision() == pytest.approx(0.5 / 3, abs=1e-6)
    assert score("--strict-quirk", "round").refuses("quirk 'round': known are rounded-results")
    assert score("--sequences", "swim").refuses("swim: no sequence of RGBT210")


def test_some_sequences_alone_are_nothing_odd(score: Command, both: list[str], tmp_path: Path) -> None:
    def scored(*sequences: str) -> dict[str, Any]:
        more = ("--sequences", *sequences, "--json", tmp_path / "s.json")
        assert score(*more, trackers=both[1:]).code == 0
        return json.loads((tmp_path / "s.json").read_text())["good"]

    scores = scored("walk", "walk", "run")
    assert scores["problems"] == []
    assert set(scores["sequences"]) == {"walk", "run"}
    (Path(both[1]) / "swim.txt").write_text("1,2,3,4\n")
    (problem,) = scored("walk")["problems"]
    assert "unknown sequence" in str(problem)
    assert "swim" in str(problem)


def test_loss_against_a_tracker(score: Command) -> None:
    told = score("--against", "good")
    assert told.code == 0
    table = [line.split() for line in told.out.splitlines()]
    assert ["against", "good", "PR", "SR", "SR", "kept"] in table
    assert table[-1][-4:] == ["-50.0", "-47.6", "50", "%"]
    told = score("--against", "best")
    assert told.refuses(f"--against 'best': expected one of the trackers {HOSTILE}, good")
    assert told.out == ""  # said before anything is scored


def test_names_that_are_no_utf8(score: Command, tmp_path: Path) -> None:
    folder = results(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")), ("walk",))
    files = {option: tmp_path / f"out.{option}" for option in ("json", "csv", "html")}
    told = score(*[part for option, path in files.items() for part in (f"--{option}", path)], trackers=[str(folder)])
    assert told.code == 0
    for text in (told.out, *(path.read_text() for path in files.values())):
        assert "caf\\udce9" in text


def test_bad_calls(
    both: list[str], root: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CKD_FAST_RGBT210", raising=False)
    there, (poor, good) = ("--root", root), both
    for arguments, message in (
        ((tmp_path / "absent", *there), "no such folder"),
        ((poor,), "environment variable CKD_FAST_RGBT210"),
        ((poor, "--root", tmp_path), "no sequences of RGBT210"),
        ((poor, poor, *there), "given twice"),
        ((good, *there, "--json", tmp_path), "a folder; expected"),
        ((good, *there, "--csv", f"{good}/new.txt"), "taken for a result"),
        ((good, *there, "--csv", "x", "--json", "./x"), "for two outputs"),
    ):
        told = command("eval", *arguments, "--dataset", "rgbt210", "--quiet")
        assert told.refuses(message)
        assert told.err.count("ckd-fast: ") == told.err.count("\n") <= 2  # one may say that 3 of 210 are there
    assert command("eval", poor, "--dataset", "otb").code == 2


class Elements(HTMLParser):
    """Which elements a page has, and what they would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.loads: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "onerror")]


def page(both: list[str], root: Path) -> str:
    return html_report(evaluate(open_dataset("rgbt210", root), [Path(folder) for folder in both]))


def test_names_stay_text_and_nothing_is_loaded(both: list[str], root: Path) -> None:
    text = page(both, root)
    elements = Elements(text)
    assert elements.loads == []
    assert (elements.tags["img"], elements.tags["b"], elements.tags["script"]) == (0, 0, 2)
    assert "default-src 'none'" in text
    assert set(re.findall(r"https?://[^\"'\s]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    assert [tracker["name"] for tracker in data["trackers"]] == ["good", HOSTILE]
    assert data["trackers"][1]["curves"][0]["precision"][0] == 0.5
    assert [sequence["attributes"] for sequence in data["sequences"]] == [[0, 2], [0, 1], [1, 2]]


def browse(text: str, folder: Path, script: str = "") -> str:
    """The page as a browser has it after its scripts, and a further one, have run."""
    if CHROMIUM is None:
        pytest.skip("no Chromium (Debian: apt-get install chromium)")
    file = folder / "page.html"
    file.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        [*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


def cells(dom: str) -> list[list[str]]:
    """The table of sequences: name and the trackers' cells."""
    body = dom.split('id="sequences"')[1].split("<tbody>")[1].split("</tbody>", maxsplit=1)[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("<tr>")[1:]]
    return [[row[0], *row[4:]] for row in rows]


def test_report_in_a_browser(both: list[str], root: Path, tmp_path: Path) -> None:
    (Path(both[0]) / "run.txt").unlink()
    text = page(both, root)
    dom = browse(text, tmp_path)
    assert 'data-drawn="yes"' in dom
    assert dom.count('class="curve"') == 3 * 2
    assert "alert(1)&gt;" in dom
    assert "<img" not in dom
    assert cells(dom) == [  # the worst mean first; "run" has no result of the second
        ["&lt;_script&gt;&lt;b&gt;", "95.2", "23.8"],
        ["run", "95.2", "missing"],
        ["walk", "95.2", "95.2"],
    ]
    assert "Not drawn, because there are no SEQUENCE_time.txt files: &lt;img" in dom


def test_the_published_table_is_a_layer(tmp_path: Path) -> None:
    dataset = open_dataset("lasher", shared_data("eval", "groundtruth", "LasHeR"))
    text = html_report(evaluate(dataset, [shared_data("eval", "results", "LasHeR", "APFNet")]))
    rows = re.findall(r"<tr.*?</tr>", text.split('id="ranking"')[1].split("</table>")[0])
    names = [re.search(r'class="text">([^<,]*)', row)[1] for row in rows]
    assert names[1] == "CKD"
    ours = rows.index(next(row for row in rows if "published" not in row and ">APFNet<" in row))
    assert "50.0</td><td class=best>43.9</td><td class=best>41.2</td><td class=best>36.2" in rows[ours]
    assert "APFNet, AAAI 2022" in rows[ours + 1]  # 36.24 against 36.2
    assert "<td>50.0</td><td>43.9</td><td></td><td>36.2</td><td></td><td>1.3</td>" in rows[ours + 1]
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    assert {"name": "CKD", "fps": 96.4, "pr": 0.732, "about": "ACM MM 2024, ViT-B"} in data["published"]
    switch = "const box = document.getElementById('layer'); box.checked = false; box.onchange({target: box});"
    for script, circles, hidden in (("", 15, 0), (switch, 0, 19)):
        dom = browse(text, tmp_path, script)
        assert dom.count('class="layer"') == circles
        assert dom.count('<tr class="published" hidden="">') == hidden
    some = html_report(
        evaluate(dataset.select(dataset.names[:3]), [shared_data("eval", "results", "LasHeR", "APFNet")])
    )
    assert 'class="published"' not in some  # scores of some sequences cannot be compared with the table


def test_report_sorts_filters_and_hides(both: list[str], root: Path, tmp_path: Path) -> None:
    text = page(both, root)
    press = "[...document.querySelectorAll('#sequences th button')][0].click();"
    find = "const box = document.getElementById('search'); box.value = 'UN'; box.oninput({target: box});"
    choose = "const list = document.getElementById('choose-challenge-select'); list.value = '2';"
    choose += "list.onchange({target: list});"
    hostile = "&lt;_script&gt;&lt;b&gt;"
    for script, names in (
        (press, [hostile, "run", "walk"]),
        (press * 2, ["walk", "run", hostile]),
        (find, ["run"]),
        (choose, [hostile, "walk"]),  # those with TC
    ):
        dom = browse(text, tmp_path, script)
        assert [row[0] for row in cells(dom)] == names
        assert script != find or "1 of 3 sequences" in dom
    dom = browse(text, tmp_path, "document.querySelector('#success .legend li').click();")
    assert dom.count('class="curve"') == 3
    assert all(len(row) == 2 for row in cells(dom))
