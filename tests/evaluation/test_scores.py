"""Scores: the numbers of the toolkits, every quirk by a case counted by hand, and everything that can be wrong."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest
from support import lay_out, shared_data

from ckd_fast import InputError
from ckd_fast.datasets import open_dataset
from ckd_fast.datasets.sequences import Dataset
from ckd_fast.datasets.tables import read_table
from ckd_fast.evaluation import Evaluation, ScoringOptions, evaluate
from ckd_fast.evaluation.metrics import NPR_AT, curves, distances, metrics
from ckd_fast.evaluation.results import read_results, tracker_names
from ckd_fast.evaluation.rules import PROTOCOLS, QUIRKS, Quirks, protocol_of
from ckd_fast.evaluation.scores import load_benchmark, score_tracker, summarise

PUBLISHED = [
    ("gtot", "GTOT", "MTNet"),
    ("gtot", "GTOT", "APFNet"),
    ("gtot", "GTOT", "MaCNet"),
    ("rgbt210", "RGBT210", "mfDiMP"),
    ("rgbt210", "RGBT210", "MTNet"),
    ("rgbt234", "RGBT234", "MTNet"),
    ("lasher", "LasHeR", "APFNet"),
    ("lasher", "LasHeR", "mfDiMP"),
    ("lasher", "LasHeR", "MTNet"),
]
FIELD = {"PR": "pr", "NPR": "npr", "SR": "sr", "MPR": "pr", "MSR": "sr"}


def truth(*rows: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(rows, dtype=np.float64)


def published(name: str, folder: str, tracker: str, *strict: str) -> tuple[Evaluation, dict]:
    expected = json.loads(shared_data("eval", "expected.json").read_text())[folder][tracker]
    results = shared_data("eval", *expected.get("results_dir", f"results/{folder}/{tracker}").split("/"))
    dataset = open_dataset(name, shared_data("eval", "groundtruth", folder))
    return evaluate(dataset, [results], ScoringOptions(strict_quirks=strict)), expected


@pytest.mark.parametrize(("name", "folder", "tracker"), PUBLISHED)
def test_numbers_of_the_toolkits(name: str, folder: str, tracker: str) -> None:
    evaluation, expected = published(name, folder, tracker)
    (score,) = evaluation.trackers
    overall = evaluation.metrics(score)
    for metric, value in expected["overall"].items():
        assert getattr(overall, FIELD[metric]) == pytest.approx(value, abs=1e-6), metric
    for attribute, values in expected.get("attributes", {}).items():
        mask = evaluation.benchmark.masks[attribute]
        assert mask.sum() == values["n"]
        of = evaluation.metrics(score, mask)
        for metric in values.keys() - {"n"}:
            assert getattr(of, FIELD[metric]) == pytest.approx(values[metric], abs=1e-6), (attribute, metric)
    if name == "gtot":
        return  # its toolkit gives no numbers per sequence
    each = json.loads(shared_data("eval", "expected_per_sequence.json").read_text())[f"{folder}/{tracker}"]
    assert set(each) == set(evaluation.benchmark.names)
    for index, sequence in enumerate(evaluation.benchmark.names):
        one = evaluation.sequence_metrics(score, index)
        mine = (one.pr, one.npr, one.sr) if len(each[sequence]) == 3 else (one.pr, one.sr)
        assert mine == pytest.approx(each[sequence], abs=1e-6), sequence


@pytest.mark.parametrize("tracker", ["MTNet", "APFNet", "MaCNet"])
def test_gtot_sequence_by_sequence(tracker: str) -> None:
    """Counted anew, a frame at a time."""
    evaluation, _ = published("gtot", "GTOT", tracker)
    (score,) = evaluation.trackers
    folder = shared_data("eval", "results", "GTOT", tracker)
    for index, name in enumerate(evaluation.benchmark.names):
        rows = np.rint(read_table(folder / f"{name}.txt").values)
        if rows.shape[1] == 8:
            xs, ys = rows[:, 0::2], rows[:, 1::2]
            low, high = np.stack([xs.min(1), ys.min(1)], 1), np.stack([xs.max(1), ys.max(1)], 1)
        else:
            low, high = rows[:, :2], rows[:, :2] + rows[:, 2:]
        corners = [
            read_table(file.path).values for _, file in evaluation.benchmark.dataset.sequence(name).truths.items()
        ]
        hits = [
            min(np.hypot(*((lo + hi) / 2 - (row[:2] + row[2:4]) / 2)) for row in given) < 5
            for lo, hi, *given in zip(low, high, *map(_upright, corners), strict=False)
        ]
        assert evaluation.sequence_metrics(score, index).pr == pytest.approx(np.mean(hits)), name


def _upright(corners: np.ndarray) -> np.ndarray:
    """GTOT names opposite corners in any order."""
    first, second = corners[:, :2], corners[:, 2:4]
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], 1)


@pytest.mark.parametrize("tracker", ["MTNet", "APFNet", "MaCNet"])
def test_gtot_with_the_last_pixel(tracker: str) -> None:
    evaluation, expected = published("gtot", "GTOT", tracker, "open-corners")
    of = evaluation.metrics(evaluation.trackers[0])
    assert (of.pr, of.sr) == pytest.approx((expected["strict"]["MPR"], expected["strict"]["MSR"]), abs=1e-6)


def test_all_of_lasher_in_three_seconds_after_reading() -> None:
    dataset = open_dataset("lasher", shared_data("eval", "groundtruth", "LasHeR"))
    benchmark = load_benchmark(dataset)
    results = read_results(shared_data("eval", "results", "LasHeR", "APFNet"), "APFNet", benchmark.names)
    start = time.process_time()
    score = score_tracker(benchmark, results)
    evaluation = Evaluation(benchmark, (score,))
    for mask in (None, *benchmark.masks.values()):
        evaluation.metrics(score, mask)
    assert time.process_time() - start < 3


def test_overlap_and_curves_by_hand() -> None:
    boxes = truth((0, 0, 10, 10), (5, 0, 10, 10), (100, 0, 10, 10), (0, 0, 0, 0))
    given = truth((0, 0, 10, 10), (0, 0, 10, 10), (0, 0, 10, 10), (0, 0, 0, 0))
    protocol = protocol_of("vtuav")
    found = distances(boxes[:3], [given[:3]], protocol.quirks)
    assert found.centre.tolist() == [0, 5, 100]
    assert found.normalised.tolist() == [0, 0.5, 10]
    of = curves(found, protocol)
    assert of.precision[[0, 4, 5, 20]].tolist() == [1 / 3, 1 / 3, 2 / 3, 2 / 3]
    assert of.normalised[[NPR_AT, 49, 50]].tolist() == [1 / 3, 1 / 3, 2 / 3]
    assert of.success[[0, 6, 7, 19, 20]].tolist() == [2 / 3, 2 / 3, 1 / 3, 1 / 3, 0]  # strictly more than t
    got = metrics(of, protocol)
    assert (got.pr, got.npr, got.npr_auc, got.sr) == pytest.approx(
        (2 / 3, 1 / 3, (50 * 1 / 3 + 2 / 3) / 51, (20 + 7) / 3 / 21)
    )


def test_limits_and_areas_of_gtot() -> None:
    protocol = protocol_of("gtot")
    found = distances(truth((5, 0, 10, 10), (4, 0, 10, 10)), [truth((0, 0, 10, 10), (0, 0, 10, 10))], Quirks())
    of = curves(found, protocol)
    assert of.precision[5] == 0.5  # an error of exactly 5 pixels is a miss
    assert curves(found, dataclasses.replace(protocol, limit_hits=True)).precision[5] == 1
    assert metrics(of, protocol).pr == 0.5
    success = of.success
    assert metrics(of, protocol).sr == pytest.approx((success.sum() - (success[0] + success[-1]) / 2) / 20)


def test_two_truths_take_the_closer_one_frame_by_frame() -> None:
    result = truth((0, 0, 10, 10), (0, 0, 10, 10))
    visible, infrared = truth((3, 0, 10, 10), (0, 0, 10, 10)), truth((1, 0, 10, 10), (8, 0, 10, 10))
    found = distances(result, [visible, infrared], Quirks())
    assert found.centre.tolist() == [1, 0]
    assert found.overlap.tolist() == pytest.approx([9 / 11, 1])


def with_quirk(name: str, *, on: bool, boxes: np.ndarray, given: np.ndarray, base: Quirks | None = None) -> list[float]:
    quirks = dataclasses.replace(base or Quirks(), **{name: on})
    found = distances(boxes, [given], quirks)
    return [round(float(v), 6) for v in found.centre] + [round(float(v), 6) for v in found.overlap]


def test_each_quirk_and_its_strict_reading() -> None:
    inf = float("inf")
    square = (0.0, 0.0, 10.0, 10.0)
    both = truth(square, square)
    assert with_quirk("rounded_truth", on=True, boxes=truth(square), given=truth((0.4, 0, 10.4, 10))) == [0, 1]
    assert with_quirk("rounded_truth", on=False, boxes=truth(square), given=truth((0.4, 0, 10, 10)))[0] == 0.4
    far = truth((50, 0, 10, 10), square)
    assert with_quirk("given_first_row", on=True, boxes=far, given=both) == [0, 0, 1, 1]
    assert with_quirk("given_first_row", on=False, boxes=far, given=both) == [50, 0, 0, 1]
    empty = truth((1, 0, 10, 10), (0, 0, 0, 10))
    count = Quirks(empty_boxes_count=True)
    assert with_quirk("repeated_boxes", on=True, boxes=empty, given=both, base=count)[:2] == [1, 1]
    assert with_quirk("repeated_boxes", on=False, boxes=empty, given=both, base=count) == [1, 5, 0.818182, 0]
    assert with_quirk("empty_boxes_count", on=False, boxes=empty, given=both) == [1, inf, 0.818182, -1]
    odd = truth(square, (5, 5, 10, 10), (5, 5, 0, 0))  # the first has x = 0
    result = truth(square, (5, 5, 10, 10), (5, 5, 2, 2))
    assert with_quirk("bad_truth_hits", on=True, boxes=result, given=odd) == [-1, 0, -1, -1, 1, -1]
    assert with_quirk("bad_truth_counts", on=True, boxes=result, given=odd) == [0, 0, 1.414214, 1, 1, 0]
    assert with_quirk("bad_truth_counts", on=False, boxes=result, given=odd) == [0, 0, 1, 1]  # the third is left out
    assert with_quirk("shorter_counts", on=True, boxes=truth(square), given=both) == [0, 1]
    assert with_quirk("shorter_counts", on=False, boxes=truth(square), given=both) == [0, inf, 1, -1]
    assert with_quirk("shorter_counts", on=False, boxes=truth(*[square] * 3), given=both) == [0, 0, 1, 1]
    lost = truth(square, (float("nan"), 0, 10, 10), (float("inf"), 0, 1, 1))
    for quirks in (Quirks(), protocol_of("lasher").quirks):
        found = distances(lost, [truth((1, 1, 10, 10), (1, 1, 10, 10), (1, 1, 10, 10))], quirks)
        assert found.centre[1:].tolist() == [inf, inf]  # NaN is a miss in either reading
        assert found.overlap[1:].tolist() == [-1, -1]


@pytest.mark.parametrize("row", ["1,1,-inf,5", "1,1,5,-inf", "-inf,1,5,5", "nan,1,5,5", "1,1,nan,0", "inf,inf,0,0"])
def test_what_is_not_finite_is_a_miss_on_lasher(row: str) -> None:
    boxes = np.array([[1, 1, 5, 5], [float(value) for value in row.split(",")], [0, 0, 0, 0], [1, 1, 5, 5]])
    given = truth(*[(1, 1, 5, 5)] * 4)
    found = distances(boxes, [given], protocol_of("lasher").quirks)
    assert np.isinf(found.centre).tolist() == [False, True, True, False]
    assert found.overlap.tolist() == [1, -1, -1, 1]


def test_quirks_by_name() -> None:
    lasher = protocol_of("lasher").quirks
    assert set(lasher.on()) == set(QUIRKS)
    assert set(lasher.without(["rounded-results", "open-corners"]).on()) == set(QUIRKS) - {
        "rounded-results",
        "open-corners",
    }
    assert lasher.without(["all"]) == Quirks()
    with pytest.raises(InputError, match="quirk 'round': known are rounded-results"):
        lasher.without(["round"])
    assert {p.prefix for p in PROTOCOLS if p.dataset in ("gtot", "rgbt234")} == {"M"}
    assert {p.prefix for p in PROTOCOLS if p.dataset not in ("gtot", "rgbt234")} == {""}
    with pytest.raises(InputError, match=r"missing='skip': known are zero, leave-out"):
        ScoringOptions(missing="skip")
    with pytest.raises(InputError, match="boxes='polygon'"):
        ScoringOptions(boxes="polygon")


# --- own data with results of every kind --------------------------------------------------------------------------

FRAMES = 4
WHERE = {"a": (10, 10, 20, 20), "b": (40, 30, 10, 30), "c": (5, 60, 30, 10)}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    truths = {f"{name}/groundtruth.txt": (",".join(map(str, box)) + "\n") * FRAMES for name, box in WHERE.items()}
    return open_dataset("folder", lay_out(tmp_path / "data", truths))


def results(folder: Path, *, separator: str = ",", corners: bool = False, count: int = FRAMES) -> Path:
    """Perfect results; corners name the last pixel of the box."""
    folder.mkdir(parents=True)
    for name, (x, y, w, h) in WHERE.items():
        right, bottom = x + w - 1, y + h - 1
        row = (x, y, right, y, right, bottom, x, bottom) if corners else (x, y, w, h)
        (folder / f"{name}.txt").write_text((separator.join(map(str, row)) + "\n") * count)
    return folder


def kinds(evaluation: Evaluation) -> set[tuple[str, tuple[str, ...]]]:
    return {(problem.kind, problem.sequences) for problem in evaluation.problems}


@pytest.mark.parametrize("separator", [",", "\t", " ", ", "])
@pytest.mark.parametrize("shape", ["box", "corners"])
def test_every_spelling_of_results(dataset: Dataset, tmp_path: Path, separator: str, shape: str) -> None:
    evaluation = evaluate(dataset, [results(tmp_path / "CKD", separator=separator, corners=shape == "corners")])
    assert evaluation.problems == ()
    of = evaluation.metrics(evaluation.trackers[0])
    assert (of.pr, of.npr, of.npr_auc, of.sr) == pytest.approx((1, 1, 1, 20 / 21))


def test_ltrb_and_centre(dataset: Dataset, tmp_path: Path) -> None:
    for form, convert in (
        ("ltrb", lambda x, y, w, h: (x, y, x + w - 1, y + h - 1)),
        ("centre", lambda x, y, w, h: (x + w / 2, y + h / 2, w, h)),
    ):
        folder = results(tmp_path / form)
        for name, box in WHERE.items():
            (folder / f"{name}.txt").write_text((",".join(map(str, convert(*box))) + "\n") * FRAMES)
        evaluation = evaluate(dataset, [folder], ScoringOptions(boxes=form))
        assert evaluation.metrics(evaluation.trackers[0]).sr == pytest.approx(20 / 21)
        assert evaluate(dataset, [folder]).trackers[0].curves.success.mean() < 0.7


def test_everything_wrong_is_named(dataset: Dataset, tmp_path: Path) -> None:
    bad = {
        "a.txt": "10,10,20,20\n" * (FRAMES - 1) + "nan,1,2,3\n",
        "b.txt": "40,30,10,30\n40 30 10 30\n",
        "zzz.txt": "1,2,3,4\n",
    }
    folder = lay_out(tmp_path / "bad", bad)
    evaluation = evaluate(dataset, [folder])
    assert kinds(evaluation) == {
        ("missing sequence", ("c",)),
        ("unknown sequence", ("zzz",)),
        ("not finite", ("a",)),
        ("mixed formats", ("b",)),
        ("short", ("b",)),
    }
    (score,) = evaluation.trackers
    # a has one miss of four, b two, c counts as zero
    assert evaluation.metrics(score).pr == pytest.approx((0.75 + 0.5 + 0) / 3)
    left_out = evaluate(dataset, [folder], ScoringOptions(missing="leave-out"))
    assert left_out.metrics(left_out.trackers[0]).pr == pytest.approx((0.75 + 0.5) / 2)
    lines = summarise(evaluation.problems)
    assert "bad: missing sequence: no result of 1 of 3 sequences (c)" in lines
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("1,2,3\n" * FRAMES, "wrong columns", "3 columns; expected 4"),
        ("1,2,3,4\n1,2,3\n", "unreadable", "line 2: 3 numbers where line 1 has 4"),
        ("1,2,3,x\n", "unreadable", "'x' is not a number"),
        ("", "unreadable", "empty"),
        ("\x00\x01", "unreadable", "is not a number"),
    ],
)
def test_files_without_use_count_as_zero(dataset: Dataset, tmp_path: Path, text: str, kind: str, message: str) -> None:
    folder = results(tmp_path / "bad")
    (folder / "b.txt").write_text(text)
    evaluation = evaluate(dataset, [folder])
    (problem,) = evaluation.problems
    assert (problem.kind, problem.sequences) == (kind, ("b",))
    assert message in problem.text
    assert evaluation.metrics(evaluation.trackers[0]).pr == pytest.approx(2 / 3)
    assert evaluation.trackers[0].present.tolist() == [True, False, True]


def test_long_results_empty_boxes_and_mixed_files(dataset: Dataset, tmp_path: Path) -> None:
    folder = results(tmp_path / "long", count=FRAMES + 2)
    (folder / "a.txt").write_text("10\t10\t20\t20\n" * (FRAMES - 1) + "1\t1\t0\t5\n")
    evaluation = evaluate(dataset, [folder])
    assert kinds(evaluation) == {
        ("long", ("b",)),
        ("long", ("c",)),
        ("without area", ("a",)),
        ("mixed formats", ("a",)),
    }
    assert evaluation.metrics(evaluation.trackers[0]).pr == pytest.approx((0.75 + 1 + 1) / 3)


def test_mixed_formats_are_counted_by_sequence(dataset: Dataset, tmp_path: Path) -> None:
    folder = results(tmp_path / "mixed")
    (folder / "a.txt").write_text("10\t10\t20\t20\n10 10 20 20\n" * (FRAMES // 2))
    (folder / "b.txt").write_text("40\t30\t10\t30\n" * FRAMES)
    (line,) = summarise(evaluate(dataset, [folder]).problems)
    assert line.startswith("mixed: mixed formats: 2 sequences (")
    assert "a, a" not in line


def test_empty_folders(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "none" / "CKD").mkdir(parents=True)
    evaluation = evaluate(dataset, [tmp_path / "none", results(tmp_path / "good")])
    assert [tracker.name for tracker in evaluation.trackers] == ["good", "none"]  # ranked
    (problem,) = evaluation.problems
    assert problem.kind == "empty folder"
    assert "has the folders CKD: is one of them meant?" in problem.text
    assert evaluation.metrics(evaluation.trackers[1]).sr == 0
    with pytest.raises(InputError, match="expected a list of folders, one per tracker"):
        evaluate(dataset, str(tmp_path))
    with pytest.raises(InputError, match="no such folder; expected a folder of SEQUENCE"):
        evaluate(dataset, [tmp_path / "absent"])


def test_times_make_frames_per_second(dataset: Dataset, tmp_path: Path) -> None:
    times = {"a_time.txt": "9\n0.1\n0.1\n0.1\n", "b_time.txt": "9\n0.3\n0.3\n0.3\n", "c_time.txt": "9\n-1\n"}
    (score,) = evaluate(dataset, [lay_out(results(tmp_path / "timed"), times)]).trackers
    assert score.fps == pytest.approx(6 / 1.2)  # the first row is the initialisation
    assert [(problem.kind, problem.sequences) for problem in score.problems] == [("unreadable", ("c",))]


def scored(name: str, root: Path, files: dict[str, str]) -> Evaluation:
    """One tracker on a data set of a few files: its results lie in T, all else in data."""
    lay_out(root, files)
    return evaluate(open_dataset(name, root / "data"), [root / "T"])


def test_truths_without_area_are_left_out_by_the_strict_reading(tmp_path: Path) -> None:
    truths = {"gone": "1,1,0,0\n" * 3, "seen": "1,1,5,5\nnan,nan,nan,nan\n1,1,5,5\n"}
    files = {f"data/{name}/groundtruth.txt": text for name, text in truths.items()}
    evaluation = scored("folder", tmp_path, files | {f"T/{name}.txt": "1,1,5,5\n" * 3 for name in truths})
    (score,) = evaluation.trackers
    assert score.frames.tolist() == [0, 2]
    assert evaluation.metrics(score).pr == 1
    assert [(problem.kind, problem.sequences) for problem in score.problems] == [("no truth", ("gone",))]


def test_vtuav_takes_every_tenth_row(tmp_path: Path) -> None:
    def compared(rows: range) -> Evaluation:
        truth = "".join(f"{10 * k} 0 10 10\n" for k in range(3))
        own = "".join(f"{frame} 0 10 10\n" for frame in rows)
        return scored("vtuav", tmp_path, {"data/car_1/rgb.txt": truth, "T/car_1.txt": own})

    for rows in (range(25), range(0, 30, 10)):
        evaluation = compared(rows)
        assert evaluation.metrics(evaluation.trackers[0]).sr == pytest.approx(20 / 21)
        assert evaluation.problems == ()
    assert kinds(compared(range(40))) == {("long", ("car_1",))}


@pytest.mark.parametrize(
    ("rows", "step", "share", "text"),
    [
        (191, 10, 1, None),
        (206, 10, 1, "206 rows; expected 200"),
        (250, 10, 1, "250 rows; expected 200"),
        (101, 10, 11 / 20, "101 rows; expected 200"),
        (20, 100, 1, None),
        (21, 100, 1, "21 rows; expected 20"),
        (35, 100, 1, "35 rows; expected 20"),
        (15, 100, 15 / 20, "15 rows; expected 20"),
    ],
)
def test_vtuav_results_of_every_frame_or_of_every_box(
    tmp_path: Path, rows: int, step: int, share: float, text: str | None
) -> None:
    truth = "".join(f"{100 * k} 0 10 10\n" for k in range(20))
    own = "".join(f"{step * row} 0 10 10\n" for row in range(rows))
    evaluation = scored("vtuav", tmp_path, {"data/car_1/rgb.txt": truth, "T/car_1.txt": own})
    assert evaluation.metrics(evaluation.trackers[0]).sr == pytest.approx(share * 20 / 21)
    assert [problem.text for problem in evaluation.problems] == ([text] if text else [])


def test_frames_weigh_where_the_protocol_says_so(tmp_path: Path) -> None:
    files = {}
    for name, count, box in (("long", 9, "10,10,20,20\n"), ("short", 1, "100,100,20,20\n")):
        files |= {f"data/{name}/groundTruth_{kind}.txt": "10 10 30 30\n" * count for kind in "vi"}
        files[f"T/{name}.txt"] = box * count
    evaluation = scored("gtot", tmp_path, files)
    assert evaluation.metrics(evaluation.trackers[0]).pr == pytest.approx(0.9)
    by_sequence = dataclasses.replace(evaluation.benchmark.protocol, weighting="sequences")
    other = dataclasses.replace(evaluation, benchmark=dataclasses.replace(evaluation.benchmark, protocol=by_sequence))
    assert other.metrics(other.trackers[0]).pr == pytest.approx(0.5)


def test_names_of_trackers(tmp_path: Path) -> None:
    assert tracker_names([tmp_path / "x" / "CKD", tmp_path / "y" / "CKD", tmp_path / "MTNet"]) == [
        "x/CKD",
        "y/CKD",
        "MTNet",
    ]
    with pytest.raises(InputError, match="given twice"):
        tracker_names([tmp_path / "CKD", tmp_path / "CKD"])
