"""Real samples: which frames, which crops, and what happens to bad ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from runs import MODEL, config, write_sequence

from ckd_fast import InputError, ModelConfig
from ckd_fast.datasets import open_dataset
from ckd_fast.errors import TrainingError
from ckd_fast.training.config import Sampling, Source, TrainConfig
from ckd_fast.training.samples import (
    MOST_ATTEMPTS,
    AnnotatedPair,
    FrameCache,
    PairDataset,
    SequenceSource,
    StillSource,
    cut,
    jittered,
    textured_region,
)

STILL = Sampling(centre_jitter=0, scale_jitter=0)


def folder_config(root: Path, **changes: object) -> TrainConfig:
    return config(sources=(Source("dataset", name="folder", root=str(root)),), **changes)


def test_the_search_frame_follows_the_template_within_the_gap(tmp_path: Path) -> None:
    boxes = np.array(write_sequence(tmp_path / "walk", frames=6))
    sequences = open_dataset("folder", tmp_path).sequences
    source = SequenceSource(sequences, Sampling(longest_gap=3), FrameCache(1 << 24))
    gaps = []
    for seed in range(60):
        template, search = source.draw(np.random.default_rng(seed))
        first, second = (int(np.flatnonzero((boxes == view.box).all(1))[0]) for view in (template, search))
        gaps.append(second - first)
        assert template.rgb.shape == (72, 96, 3)
        x, y, w, h = (int(v) for v in search.box)
        assert np.allclose(search.tir[y : y + h, x : x + w], 250)
    assert set(gaps) == {1, 2}


def test_the_gap_widens_where_the_target_is_absent(tmp_path: Path) -> None:
    boxes = write_sequence(tmp_path / "walk", frames=8)
    absent = [box if index in (0, 7) else [0, 0, 0, 0] for index, box in enumerate(boxes)]
    (tmp_path / "walk" / "groundtruth.txt").write_text("\n".join(",".join(map(str, b)) for b in absent))
    sequences = open_dataset("folder", tmp_path).sequences
    source = SequenceSource(sequences, Sampling(longest_gap=2, widen_by=2), FrameCache(1 << 24))
    template, search = source.draw(np.random.default_rng(0))
    assert list(template.box) == boxes[0]
    assert list(search.box) == boxes[7]


def test_crops_are_those_of_the_tracker(tmp_path: Path) -> None:
    """Without jitter the target is in the middle, half a pixel off as in the authors' labels."""
    write_sequence(tmp_path / "walk")
    source = SequenceSource(open_dataset("folder", tmp_path).sequences, STILL, FrameCache(1 << 24))
    template, search = source.draw(np.random.default_rng(1))
    sample = cut(template, search, MODEL, STILL, np.random.default_rng(2))
    side = np.ceil(np.sqrt(24 * 20) * 4)
    x, y, w, h = sample.target_xywh
    assert (w, h) == pytest.approx((24 / side, 20 / side))
    assert (x + w / 2, y + h / 2) == pytest.approx((31.5 / 64, 31.5 / 64))
    assert sample.search[1, 32, 32].tolist() == [250, 250, 250]
    assert sample.template[0, 16, 16].tolist() == [240, 120, 40]  # RGB order


def test_jitter_has_the_published_size() -> None:
    random = np.random.default_rng(0)
    drawn = np.array([jittered((100.0, 50.0, 40.0, 10.0), Sampling(), random) for _ in range(4000)])
    logs = np.log(drawn[:, 2:] / [40, 10])
    assert logs.std(0) == pytest.approx([0.25, 0.25], rel=0.05)
    reach = np.sqrt(drawn[:, 2] * drawn[:, 3]) * 1.5
    shift = (drawn[:, :2] + drawn[:, 2:] / 2 - [120, 55]) / reach[:, None]
    assert np.abs(shift).max() <= 1
    assert np.abs(shift).max() > 0.99
    assert shift.std(0) == pytest.approx([1 / np.sqrt(3)] * 2, rel=0.05)


def test_stills_give_two_views_of_one_pair(tmp_path: Path) -> None:
    write_sequence(tmp_path / "one", frames=1)
    shutil.move(tmp_path / "one" / "visible" / "000000.png", tmp_path / "one" / "visible" / "night.png")
    shutil.move(tmp_path / "one" / "infrared" / "000000.png", tmp_path / "one" / "infrared" / "night.png")
    boxes = [[20, 18, 24, 20, "person"], [1, 1, 4, 9, "far"]]
    (tmp_path / "one" / "boxes.json").write_text(json.dumps({"night": {"size": [96, 72], "boxes": boxes}}))
    source = StillSource(tmp_path / "one", FrameCache(1 << 24))
    for seed in range(5):
        template, search = source.draw(np.random.default_rng(seed))
        assert template.box == search.box == (20, 18, 24, 20)  # the small one is left out
        assert np.array_equal(template.rgb, search.rgb)
    (tmp_path / "one" / "boxes.json").write_text("[1]")
    with pytest.raises(InputError, match=r"boxes.json: expected"):
        StillSource(tmp_path / "one", FrameCache(1))


def test_a_sample_depends_on_its_position_alone(tmp_path: Path) -> None:
    write_sequence(tmp_path / "walk")
    first, second = (PairDataset(folder_config(tmp_path), 0) for _ in range(2))
    forward = [first[position] for position in range(5)]
    for position in reversed(range(5)):
        assert np.array_equal(second[position].search, forward[position].search)
    assert not np.array_equal(forward[0].search, forward[1].search)
    assert not np.array_equal(PairDataset(folder_config(tmp_path), 1)[0].search, forward[0].search)


def test_bad_samples_are_named_and_replaced(tmp_path: Path) -> None:
    write_sequence(tmp_path / "good", seed=1)
    write_sequence(tmp_path / "torn", seed=2)
    for path in (tmp_path / "torn" / "infrared").iterdir():
        path.write_bytes(path.read_bytes()[:20])
    write_sequence(tmp_path / "outside", seed=3)
    (tmp_path / "outside" / "groundtruth.txt").write_text("300,300,10,10\n" * 6)
    dataset = PairDataset(folder_config(tmp_path), 0)
    samples = [dataset[position] for position in range(40)]
    bad = [name for sample in samples for name in sample.bad]
    assert any("torn/infrared" in name and "cannot be decoded" in name for name in bad)
    assert any("lies outside the frame of 96x72" in name for name in bad)
    assert all("good" not in name for name in bad)
    reddest = max(int(sample.search[0].max()) for sample in samples)
    assert reddest == 240  # every sample is of the good sequence


def test_nothing_but_bad_samples_ends_the_run(tmp_path: Path) -> None:
    write_sequence(tmp_path / "torn")
    shutil.rmtree(tmp_path / "torn" / "visible")
    (tmp_path / "torn" / "visible").mkdir()
    for index in range(6):
        (tmp_path / "torn" / "visible" / f"{index:06d}.png").write_bytes(b"no image")
    with pytest.raises(TrainingError, match=f"no sample in {MOST_ATTEMPTS} draws in a row"):
        PairDataset(folder_config(tmp_path), 0)[0]


def test_frames_of_unequal_size_share_the_visible_grid(tmp_path: Path) -> None:
    write_sequence(tmp_path / "walk", frames=2)
    path = tmp_path / "walk" / "infrared" / "000001.png"
    assert cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (48, 36)))
    cache = FrameCache(1 << 24)
    view: AnnotatedPair = cache.read_pair(tmp_path / "walk/visible/000001.png", path, (25, 20, 24, 20))
    assert view.tir.shape == view.rgb.shape
    assert view.tir[30, 37].min() > 240


def test_the_cache_is_bounded(tmp_path: Path) -> None:
    write_sequence(tmp_path / "walk", frames=4)
    paths = sorted((tmp_path / "walk" / "visible").iterdir())
    cache = FrameCache(2 * 96 * 72 * 3)
    frames = [cache.read(path) for path in paths]
    assert cache.read(paths[3]) is frames[3]
    assert cache.read(paths[0]) is not frames[0]  # read again
    assert len(cache._frames) == 2


def write_recording(folder: Path, *, visible: bool, infrared: bool, frames: int = 6) -> None:
    """A bright square that moves five pixels a frame, and its tracklet from frame 1 on."""
    for name, there in (("visible", visible), ("infrared", infrared)):
        if there:
            (folder / name).mkdir(parents=True)
            for number in range(frames):
                image = np.full((60, 90, 3), 40, np.uint8)
                image[20:32, 10 + 5 * number : 22 + 5 * number] = 220
                cv2.imwrite(str(folder / name / f"{number:06d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 100])
    boxes = [[10 + 5 * number, 20, 12, 12] for number in range(1, frames)]
    (folder / "tracklets.json").write_text(json.dumps([[1, boxes]]))


def footage(root: Path, **settings: Any) -> TrainConfig:
    model = ModelConfig(dim=16, depth=1, heads=1, head_channels=8, eliminate_at=(), template_size=32, search_size=64)
    source = Source("footage", root=str(root), **settings)
    sampling = Sampling(longest_gap=3, centre_jitter=0, scale_jitter=0)
    return TrainConfig(model=model, sources=(source,), sampling=sampling)


@pytest.mark.parametrize("cameras", ["visible and infrared", "visible", "infrared"])
def test_footage_of_one_or_two_cameras(tmp_path: Path, cameras: str) -> None:
    visible = "visible" in cameras
    write_recording(tmp_path / "walk", visible=visible, infrared="infrared" in cameras)
    data = PairDataset(footage(tmp_path), 0)
    samples = [data[position] for position in range(20)]
    assert not [sample.bad for sample in samples if sample.bad]
    real = 0 if visible else 1
    for sample in samples:
        # The window is 2 (template) or 4 (search) sides wide, and the target is in the middle of both.
        assert sample.target_xywh == pytest.approx((0.375, 0.375, 0.25, 0.25), abs=0.02)
        for crops, inner in ((sample.template, slice(10, 22)), (sample.search, slice(26, 38))):
            assert crops[real][inner, inner].mean() > 200
            corner = crops[real][:4, :4].mean()
            assert corner == pytest.approx(40, abs=4) or corner < 4  # beyond the frame
    made = np.stack([sample.search[1 - real] for sample in samples])
    assert (made[..., 0] == made[..., 1]).all() == visible  # visible-like crops have colours
    again = PairDataset(footage(tmp_path), 0)[7]
    assert np.array_equal(again.search, samples[7].search)


def test_regions_have_texture_and_lie_in_one_frame(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    image = np.full((120, 160, 3), 128, np.uint8)
    image[:, 80:] = random.integers(0, 255, (120, 80, 1))
    boxes = [textured_region(image, np.random.default_rng(seed)) for seed in range(60)]
    found = [box for box in boxes if box is not None]
    assert len(found) > 50
    assert all(x + w > 80 for x, _, w, _ in found)
    assert textured_region(np.full((120, 160, 3), 128, np.uint8), random) is None
    write_recording(tmp_path / "walk", visible=False, infrared=True)
    sample = PairDataset(footage(tmp_path, regions=1.0), 0)[0]
    assert sample.target_xywh[2] * sample.target_xywh[3] == pytest.approx(1 / 16, rel=0.1)


def test_what_footage_refuses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no recordings are left"):
        PairDataset(footage(tmp_path), 0)
    write_recording(tmp_path / "walk", visible=True, infrared=False)
    with pytest.raises(InputError, match="no recording 'run'; there are walk"):
        PairDataset(footage(tmp_path, exclude=("run",)), 0)
    path = tmp_path / "walk" / "tracklets.json"
    for text, message in (
        ("{", "expected"),
        ("[[4, [[1, 1, 5, 5], [1, 1, 5, 5], [1, 1, 5, 5]]]]", "a tracklet of 3 boxes from frame 4 does not fit"),
        ("[[0, [[1, 1, 5, 5], [1, 1, NaN, 5]]]]", "does not fit the frames"),
        ("[]", "has no tracklets: set regions=1"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            PairDataset(footage(tmp_path), 0)
    with pytest.raises(InputError, match="a source of footage needs its folder"):
        Source("footage")
