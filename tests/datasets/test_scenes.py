"""What scenes are made of: figures fill their boxes, views agree, occlusion is counted, and what cameras do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from ckd_fast import InputError
from ckd_fast.datasets.scenes import casting
from ckd_fast.datasets.scenes.animals import animal
from ckd_fast.datasets.scenes.backdrop import Landscape, landscape
from ckd_fast.datasets.scenes.cameras import Exposure, Glow
from ckd_fast.datasets.scenes.canvas import View, cover, draw
from ckd_fast.datasets.scenes.figures import Actor, Bytes, Pose, Standing, capsules
from ckd_fast.datasets.scenes.people import person
from ckd_fast.datasets.scenes.photos import photo_backdrop
from ckd_fast.datasets.scenes.render import Moment, render, visible_share
from ckd_fast.datasets.scenes.scenery import building, bush, post, tree, wall
from ckd_fast.datasets.scenes.shapes import shape
from ckd_fast.datasets.scenes.tiles import Tiles, make_tiles
from ckd_fast.datasets.scenes.vehicles import vehicle

TILES = make_tiles()
SIZE = (120, 160)
WHOLE = View(0.0, 0.0)
Maker = Callable[[np.random.Generator, Tiles], Actor]
MOVERS = (person, vehicle, animal, shape)


def plain(seed: int = 0) -> Landscape:
    """Ground without a sky, ways or things."""
    place = landscape(np.random.default_rng(seed), TILES, SIZE[1], SIZE[0])
    return dataclasses.replace(place, horizon=-100.0, camera_height=4.0, areas=(), far=(), roughness=0.0, paved=False)


def moment(target: Standing, *scenery: Standing, **more: object) -> Moment:
    return dataclasses.replace(Moment(plain(), scenery, (), target, Exposure()), **more)


def someone(seed: int = 1, x: float = 80.0) -> Standing:
    return Standing(person(np.random.default_rng(seed), TILES), Pose(x, 100.0, 40.0, phase=1.5))


@pytest.mark.parametrize("make", MOVERS)
@pytest.mark.parametrize("heading", [0.0, 1.1, 2.5, -1.57, 4.0])
def test_the_box_is_around_what_is_drawn(make: Maker, heading: float) -> None:
    actor = make(np.random.default_rng(3), TILES)
    figure = actor.figure(Pose(150.3, 220.6, 60 / actor.height, heading, phase=0.8))
    mask = np.zeros((300, 300), np.uint8)
    cover(mask, WHOLE, figure, TILES, 1)
    rows, columns = np.nonzero(mask)
    x, y, w, h = figure.box()
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert found == pytest.approx([x, y, x + w, y + h], abs=1.2)  # filled pixels are whole ones
    assert 30 < h < 100
    painted = np.zeros((300, 300, 4), np.uint8)
    draw(painted, WHOLE, figure, np.full_like(actor.palette, 200.0), None, TILES)
    assert not painted[mask == 0].any(1).sum() > 4 * (w + h)  # soft edges
    assert (painted[mask > 0] == 200).all(1).mean() > 0.75


def test_capsules_reach_their_radii() -> None:
    start, end = np.array([[10.0, 20.0]]), np.array([[40.0, 20.0]])
    (outline,) = capsules(start, end, np.array([3.0]), np.array([5.0]))
    assert outline.min(0) == pytest.approx([7, 15])
    assert outline.max(0) == pytest.approx([45, 25])
    assert np.isfinite(capsules(start, start, np.array([2.0]), np.array([2.0]))).all()


def test_feet_stay_on_the_ground() -> None:
    somebody = person(np.random.default_rng(5), TILES)
    for phase in np.linspace(0, 6, 9).tolist():
        _, y, _, h = somebody.figure(Pose(0, 0, 100.0, 0.0, phase, tilt=0.0)).box()
        assert y + h == pytest.approx(0, abs=4)  # centimetres
        assert 0.93 < h / 100 / somebody.height < 1.08


def test_a_walker_turns_and_swings() -> None:
    somebody = person(np.random.default_rng(5), TILES)

    def width(heading: float, phase: float) -> float:
        return somebody.figure(Pose(0, 0, 100.0, heading, phase)).box()[2]

    assert width(0.0, 1.5) > 1.5 * width(0.0, 0.0)  # a stride against passing legs
    assert width(0.0, 1.5) > 1.3 * width(np.pi / 2, 1.5)  # from the side, and from behind


def test_a_closer_view_shows_the_same() -> None:
    """A picture of half the pixels agrees with the shrunk one, but for edges."""
    seen = moment(someone(), Standing(tree(np.random.default_rng(2)), Pose(30, 80, 10.0)))
    near = render(seen, View(40.0, 20.0, 0.25), (320, 320), TILES, 0)
    far = render(seen, View(40.0, 20.0, 0.5), (160, 160), TILES, 0)
    shrunk = cv2.resize(near, (160, 160), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(shrunk - far).mean() < 3
    assert np.abs(shrunk - far).mean() < 0.2 * np.abs(far.astype(int) - np.roll(far, 20, 1)).mean()


def test_the_share_that_is_visible() -> None:
    target = someone()
    x, _, w, _ = target.figure.box()
    assert visible_share(moment(target), WHOLE, SIZE, TILES) == 1
    front = dataclasses.replace(wall(np.random.default_rng(0), TILES), width=3.0, height=2.5)

    def behind(x: float, y: float) -> float:
        return visible_share(moment(target, Standing(front, Pose(x, y, 40.0))), WHOLE, SIZE, TILES)

    assert behind(x + w / 2, 105.0) == 0
    assert behind(x + w / 2, 90.0) == 1  # farther than the target
    mask = np.zeros(SIZE, np.uint8)
    cover(mask, WHOLE, target.figure, TILES, 1)
    edge = round(x + w / 2)
    left_of_it = mask[:, :edge].sum() / mask.sum()
    assert 0.2 < left_of_it < 0.8
    assert behind(edge + 60.0, 105.0) == pytest.approx(left_of_it, abs=0.05)
    in_front = moment(target, Standing(front, Pose(x + w / 2, 105.0, 40.0)), target_in_front=True)
    assert visible_share(in_front, WHOLE, SIZE, TILES) == 1
    assert visible_share(moment(target), View(edge, 0.0), SIZE, TILES) == pytest.approx(1 - left_of_it, abs=0.05)
    assert visible_share(moment(target), View(x + w + 2, 0.0), SIZE, TILES) == 0


def test_what_covers_the_target_is_drawn_over_it() -> None:
    target, front = someone(), wall(np.random.default_rng(0), TILES)
    covering = Standing(dataclasses.replace(front, width=3.0, height=2.5), Pose(80.0, 105.0, 40.0))
    alone = render(moment(covering), WHOLE, SIZE, TILES, 0)
    both = render(moment(target, covering), WHOLE, SIZE, TILES, 0)
    assert np.array_equal(alone, both)


def difference(one: Bytes, other: Bytes, target: Standing, channels: slice) -> float:
    """Mean over the target's pixels, in levels."""
    mask = np.zeros(SIZE, np.uint8)
    cover(mask, WHOLE, target.figure, TILES, 1)
    return float(np.abs(one.astype(float) - other)[mask > 0][:, channels].mean())


@pytest.mark.parametrize(
    ("faded", "hidden", "shown"),
    [
        ({"crossover": 1.0}, slice(3, 4), slice(0, 3)),
        ({"contrast": (1.0, 1.0, 1.0, 0.0)}, slice(3, 4), slice(0, 3)),
        ({"contrast": (0.0, 0.0, 0.0, 1.0)}, slice(0, 3), slice(3, 4)),
    ],
)
def test_one_camera_sees_what_another_does_not(faded: dict, hidden: slice, shown: slice) -> None:
    target = someone(2)
    away = render(moment(someone(2, x=1000.0)), WHOLE, SIZE, TILES, 0)
    usual = render(moment(target), WHOLE, SIZE, TILES, 0)
    changed = render(moment(target, **faded), WHOLE, SIZE, TILES, 0)
    assert np.array_equal(changed[..., shown], usual[..., shown])
    assert difference(changed, away, target, hidden) < 0.3 * difference(usual, away, target, hidden)


def test_trouble_of_the_visible_camera_is_its_own() -> None:
    target = someone()
    clear = render(moment(target), WHOLE, SIZE, TILES, 0).astype(int)
    dark = render(moment(target, exposure=Exposure(light=0.05)), WHOLE, SIZE, TILES, 0)
    assert dark[..., :3].mean() < 0.06 * clear[..., :3].mean()
    assert np.array_equal(dark[..., 3], clear[..., 3])
    glare = render(moment(target, exposure=Exposure(glows=(Glow(80, 60, 100, 500),))), WHOLE, SIZE, TILES, 0)
    assert (glare[..., 0] == 255).mean() > 0.5
    assert np.array_equal(glare[..., 3], clear[..., 3])
    smoke = render(moment(target, exposure=Exposure(smoke=1.0)), WHOLE, SIZE, TILES, 0)
    away = moment(someone(x=1000.0), exposure=Exposure(smoke=1.0))
    empty = render(away, WHOLE, SIZE, TILES, 0)
    bare = render(moment(someone(x=1000.0)), WHOLE, SIZE, TILES, 0)
    visible, warm = slice(0, 3), slice(3, 4)
    assert difference(smoke, empty, target, visible) < 0.5 * difference(clear, bare, target, visible)
    assert difference(smoke, empty, target, warm) > 0.8 * difference(clear, bare, target, warm)


def test_the_thermal_camera() -> None:
    target = someone()
    clear = render(moment(target), WHOLE, SIZE, TILES, 0).astype(float)
    changed = render(moment(target, exposure=Exposure(gain=-0.5, offset=180)), WHOLE, SIZE, TILES, 0)
    assert np.abs(changed[..., 3] - (180 - 0.5 * clear[..., 3])).max() <= 1
    noisy = render(moment(target, exposure=Exposure(noise=4.0)), WHOLE, SIZE, TILES, 0) - clear
    assert noisy.std() == pytest.approx(4, rel=0.1)
    assert abs(noisy.mean()) < 0.3
    soft = render(moment(target, exposure=Exposure(thermal_blur=2.0)), WHOLE, SIZE, TILES, 0)
    assert np.abs(np.diff(soft[..., 3].astype(int))).max() < 0.5 * np.abs(np.diff(clear[..., 3])).max()
    assert np.array_equal(soft[..., :3], clear[..., :3])


@pytest.mark.parametrize("make", [*MOVERS, wall, building])
def test_everything_can_be_drawn_at_any_size(make: Maker) -> None:
    for seed, metre in ((0, 0.4), (1, 3.0), (2, 900.0)):
        actor = make(np.random.default_rng(seed), TILES)
        picture = render(moment(Standing(actor, Pose(80.0, 100.0, metre, 0.7))), WHOLE, SIZE, TILES, 0)
        assert picture.shape == (*SIZE, 4)


def test_lookalikes_are_of_the_same_kind_and_differ() -> None:
    random = np.random.default_rng(8)
    for make in MOVERS:
        actor = make(random, TILES)
        others = [casting.lookalike(random, TILES, actor) for _ in range(12)]
        assert {type(other) for other in others} == {type(actor)}
        apart = [float(np.abs(other.palette - actor.palette).mean()) for other in others]
        assert 0 < min(apart) < 0.6 * max(apart)
    with pytest.raises(TypeError, match="Plant is no target"):
        casting.lookalike(random, TILES, bush(random))


def test_a_lamp_hangs_where_its_glow_is() -> None:
    lamp = next(p for p in (post(np.random.default_rng(seed)) for seed in range(20)) if p.arm)
    pose = Pose(80.0, 110.0, 20.0)
    x, y = lamp.lamp(pose)
    left, top, w, h = lamp.figure(pose).box()
    assert left <= x <= left + w
    assert top <= y <= top + h / 4


def test_real_frames_as_backdrops(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no frames in visible/"):
        photo_backdrop(np.random.default_rng(0), tmp_path, 160, 120)
    for name, levels in (("visible", (20, 90, 160)), ("infrared", (70, 70, 70))):
        (tmp_path / name).mkdir()
        image = np.full((240, 320, 3), levels[::-1], np.uint8)
        image[:, :160] //= 2
        cv2.imwrite(str(tmp_path / name / "one.png"), image)
    photo = photo_backdrop(np.random.default_rng(0), tmp_path, 160, 120)
    pixels = np.zeros((*SIZE, 4), np.uint8)
    photo.paint(pixels, WHOLE, TILES)
    assert np.array_equal(pixels[60, 150], [20, 90, 160, 70])
    assert np.array_equal(pixels[60, 10], [10, 45, 80, 35])
    (tmp_path / "infrared" / "one.png").unlink()
    photo_backdrop(np.random.default_rng(0), tmp_path, 160, 120).paint(pixels, WHOLE, TILES)
    assert pixels[60, 150, 3] == round(50 + 0.4 * (0.299 * 20 + 0.587 * 90 + 0.114 * 160))
    (tmp_path / "visible" / "one.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="not an image"):
        photo_backdrop(np.random.default_rng(0), tmp_path, 160, 120)
