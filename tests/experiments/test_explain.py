"""experiments/explain.py shows what the network did; t-SNE by its own definition."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import cv2
import explain
import numpy as np
import pytest
import torch
from explain import Explanation, activity, explain_frame, instance_norm, kept_in_both, similarity, style_gap
from support import GOLDEN_CONFIG
from tsne import neighbour_probabilities, squared_distances, tsne

from ckd_fast import EngineError, InputError, Tracker, load_model, save_model
from ckd_fast.cli import main
from ckd_fast.engines.base import Search
from ckd_fast.engines.host import ReferenceEngine
from ckd_fast.frames import RawPair, first_pair
from ckd_fast.reference import losses
from ckd_fast.reference.model import OnStep
from ckd_fast.types import Box
from ckd_fast.video import FolderPairs, Pair


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clip")
    assert main(["sample", str(out), "--frames", "4", "--size", "200x160", "--seed", "2"]) == 0
    return out


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_model(load_model("random", GOLDEN_CONFIG, seed=3), path)
    return str(path)


def first_box(clip: Path) -> str:
    return (clip / "groundtruth.txt").read_text().splitlines()[0]


@dataclasses.dataclass(frozen=True)
class Start:
    """A tracker, its target in the first frame, and the frames."""

    tracker: Tracker
    target: Box
    moments: list[Pair]

    def raw(self, index: int) -> RawPair:
        return first_pair(self.moments[index].rgb, self.moments[index].tir, self.tracker.config)

    def update(self, index: int) -> Box:
        return self.tracker.update(self.moments[index].rgb, self.moments[index].tir).box


def started(clip: Path, weights: str) -> Start:
    target = tuple(map(float, first_box(clip).split(",")))
    moments = list(FolderPairs(clip / "visible", clip / "infrared"))
    tracker = Tracker(weights, engine="reference", device="cpu")
    tracker.init(moments[0].rgb, moments[0].tir, target)
    return Start(tracker, target, moments)


def explained(clip: Path, weights: str) -> tuple[Explanation, Tracker]:
    """The second frame after the first, and the tracker that has followed as far."""
    start = started(clip, weights)
    around = start.update(1)
    frame = explain_frame(start.tracker.engine, start.raw(0), start.target, start.raw(2), around)
    start.update(2)
    return frame, start.tracker


def test_explains_the_frame_that_was_tracked(clip: Path, weights: str) -> None:
    frame, tracker = explained(clip, weights)
    assert frame.box == tracker.box
    assert frame.score == pytest.approx(tracker.last.score)
    assert [(stage.block, stage.before, stage.kept.sum(axis=1).tolist()) for stage in frame.eliminations] == [
        (3, 256, [180] * 2), (6, 180, [126] * 2), (9, 126, [89] * 2),
    ]  # fmt: skip
    for earlier, later in zip(frame.eliminations, frame.eliminations[1:], strict=False):
        assert not (later.kept & ~earlier.kept).any()  # what was dropped stays dropped
    for block, tokens in enumerate(frame.tokens):
        left = np.ones(256, bool)
        for stage in frame.eliminations:
            if stage.block <= block:
                assert np.array_equal(*stage.kept)  # "mce" drops the same in both
                left = stage.kept[0]
        assert np.array_equal(kept_in_both(tokens), left)
        assert np.isnan(activity(tokens)[:, ~left]).all()
    x, y, w, h = frame.box_in_crop
    shown = frame.crops.shape[1]
    assert 0 <= x + w / 2 <= shown
    assert 0 <= y + h / 2 <= shown
    assert frame.crops.dtype == np.uint8
    assert frame.score_map.max() >= frame.score


def test_an_engine_that_hides_steps_is_refused(clip: Path, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start = ReferenceEngine.start

    def fused(engine: ReferenceEngine, searches: object, frames: object, on_step: OnStep) -> object:
        return start(engine, searches, frames, lambda name, value: name == "block1.mlp" or on_step(name, value))

    monkeypatch.setattr(ReferenceEngine, "start", fused)
    begin = started(clip, weights)
    first = begin.raw(0)
    with pytest.raises(EngineError, match=r"does not show its step block1\.mlp: use the engine 'reference'"):
        explain_frame(begin.tracker.engine, first, begin.target, first, begin.target)


def test_tokens_are_put_back_where_they_came_from(clip: Path, weights: str) -> None:
    frame, _ = explained(clip, weights)
    seen: dict[str, torch.Tensor] = {}
    again = started(clip, weights)
    engine, around = again.tracker.engine, again.update(1)
    search = Search(engine.make_target(again.raw(0), again.target), around, 4.0)
    engine.start([search], again.raw(2), seen.__setitem__).result()
    kept = seen["block9.eliminate"][0, 0].numpy()
    last = seen["block11.mlp"][:, 0, 64:].numpy()
    for place, position in enumerate(kept):
        assert np.array_equal(frame.tokens[11][:, position], last[:, place])


def test_each_branch_shows_its_own_tokens(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "ce.safetensors"
    save_model(load_model("random", dataclasses.replace(GOLDEN_CONFIG, elimination="ce"), seed=3), path)
    frame, _ = explained(clip, str(path))
    assert not np.array_equal(*frame.eliminations[-1].kept)
    for modality in range(2):
        assert np.array_equal(frame.eliminations[-1].kept[modality], np.isfinite(frame.tokens[-1][modality, :, 0]))


def test_measures_by_hand() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.normal(2, 3, (2, 40, 6)).astype(np.float32)
    theirs = losses.instance_norm(torch.from_numpy(tokens), 1e-5).numpy()
    assert instance_norm(tokens) == pytest.approx(theirs, abs=1e-5)
    assert style_gap(instance_norm(tokens)) < 1e-9
    shifted = np.stack([tokens[0], tokens[0] + 2])
    assert style_gap(shifted) == pytest.approx(4, rel=1e-5)
    assert similarity(np.array([[1, 0], [1, 1], [0, 0]]), np.array([[0, 2], [3, 3], [1, 0]])) == pytest.approx(
        [0, 1, 0]
    )
    rows = np.array([[[3.0, 4.0], [-3.0, -4.0]], [[1.0, 0.0], [1.0, 0.0]]], np.float32)
    assert activity(rows).tolist() == [[5, 5], [0, 0]]


def test_neighbours_have_the_wanted_perplexity() -> None:
    points = np.random.default_rng(1).normal(0, 1, (60, 5))
    probabilities = neighbour_probabilities(points, 12)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(60))
    assert np.diag(probabilities).tolist() == [0] * 60
    safe = np.where(probabilities > 0, probabilities, 1)
    assert np.exp(-(safe * np.log(safe)).sum(axis=1)) == pytest.approx(np.full(60, 12), rel=1e-3)
    (row,) = squared_distances(points)[:1]
    assert row == pytest.approx(((points - points[0]) ** 2).sum(axis=1), abs=1e-9)


def test_tsne_keeps_neighbours_together() -> None:
    rng = np.random.default_rng(2)
    centres = rng.normal(0, 10, (3, 20))
    points = np.concatenate([centre + rng.normal(0, 1, (25, 20)) for centre in centres])
    found = tsne(points, perplexity=10)
    assert np.array_equal(found.points, tsne(points, perplexity=10).points)
    groups = found.points.reshape(3, 25, 2)
    middles = groups.mean(axis=1)
    radius = max(np.linalg.norm(group - middle, axis=1).max() for group, middle in zip(groups, middles, strict=True))
    gaps = [np.linalg.norm(middles[a] - middles[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert min(gaps) > 2 * radius
    assert 0 < found.divergence < 0.6
    assert found.divergence < tsne(points, perplexity=10, steps=20).divergence
    for count, perplexity, message in ((5, 2, "8 to 2000"), (75, 40, "less than 24.7")):
        with pytest.raises(InputError, match=message):
            tsne(points[:count], perplexity)


def test_figures_and_numbers_from_the_shell(
    clip: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "why"
    command = [str(clip / "visible"), str(clip / "infrared"), "--init", first_box(clip), "--weights", weights]
    command += ["--engine", "reference", "--device", "cpu"]
    explain.main([*command, "--out", str(out), "--frame", "2", "--baseline", weights])
    assert "tokens 256 -> 180 -> 126 -> 89" in capsys.readouterr().out
    frame, _ = explained(clip, weights)
    about = json.loads((out / "explain.json").read_text())
    assert about["box"] == list(frame.box)
    assert [stage["kept"] for stage in about["stages"]] == [
        {"visible": np.flatnonzero(stage.kept[0]).tolist(), "thermal": np.flatnonzero(stage.kept[1]).tolist()}
        for stage in frame.eliminations
    ]
    assert about["similarity"]["these weights"] == pytest.approx(explain.mean_similarities(frame))
    assert about["similarity"][Path(weights).name] == about["similarity"]["these weights"]
    assert about["style_gap"]["normalised"] < 1e-3 * about["style_gap"]["as_is"]
    tokens, features, gap = (cv2.imread(str(out / f"{name}.png")) for name in ("tokens", "features", "gap"))
    # The veil of dropped tokens makes each later crop of the first row lighter than the one before.
    columns = np.array_split(tokens[: tokens.shape[0] // 2], 5, axis=1)
    light = [float((np.abs(column.astype(int) - 235).max(axis=2) < 50).mean()) for column in columns[:4]]
    assert light == sorted(light)
    assert light[3] > light[0] + 0.2
    for image, colour in ((gap, (178, 114, 0)), (gap, (0, 94, 213))):  # both modalities are drawn
        assert (np.abs(image.astype(int) - colour).max(axis=2) < 60).sum() > 100
    assert features.std() > 20
    for more, message in (
        ([], "tokens.png, features.png, gap.png, explain.json exist"),
        (["--force", "--frame", "9"], "--frame 9: there are 4 pairs, the last is 3"),
        (["--force", "--block", "12"], "--block 12: the network has 12, the last is 11"),
    ):
        with pytest.raises(SystemExit, match="2"):
            explain.main([*command, "--out", str(out), *more])
        assert message in capsys.readouterr().err
