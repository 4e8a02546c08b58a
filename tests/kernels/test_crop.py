"""Crops from raw frames against the host's path: `frames.register`, then the reference's crop; every value equal."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from support import DTYPES, INTERPRETED, PoisonedRoom, fixed
from torch import Tensor

from ckd_fast.config import TrackerConfig
from ckd_fast.engines.triton.upload import Rectangle, rectangle_of, scaled_rectangle, warped_rectangle
from ckd_fast.frames import FramePair, first_pair, register
from ckd_fast.kernels import layout
from ckd_fast.kernels.crop import crop, window_of
from ckd_fast.kernels.launch import Tiles
from ckd_fast.kernels.layout import FrameKind, Uploaded
from ckd_fast.reference import preprocess, twins
from ckd_fast.types import Box

SIZE, PATCH, FACTOR = 32, 8, 2.0
HEIGHT, WIDTH = 61, 96  # whole vectors of OpenCV's: what it does with the last columns depends on the processor
FMA = 12  # OpenCV's number of the processor feature FMA3
NAN = float("nan")
Guard = contextlib.AbstractContextManager[None]

# Inside, on, across and beyond every border and corner; the crop is twice as wide as the box.
BORDERS: list[Box] = [
    (40.3, 25.1, 14.2, 11.7),
    (-4, 20, 12, 12),
    (90, 20, 12, 12),
    (40, -5, 12, 12),
    (40, 55, 12, 12),
    (-6, -6, 14, 14),
    (88, 53, 14, 14),
    (80, 45, 8, 8),  # ends with the last column and row
    (79, 44, 8, 8),  # one before: nothing is dropped
    (-30, 20, 8, 8),  # wholly left: a slice with a negative end, not square
    (-30, -28, 8, 8),
    (-300, 20, 8, 8),
    (130, 20, 8, 8),
    (40, 100, 8, 8),
    (-20, -40, 200, 180),  # all of the frame
]


@dataclass(frozen=True)
class Scene:
    """Raw frames of one moment and how they are to be read."""

    rgb: NDArray[np.uint8]
    tir: NDArray[np.uint8] | NDArray[np.uint16]
    config: TrackerConfig
    kind: FrameKind

    def prepared(self) -> FramePair:
        """Both on the visible grid, 8 bits, by the host."""
        return register(first_pair(self.rgb, self.tir, self.config))

    def inverse(self) -> NDArray[np.float64] | None:
        matrix = self.config.tir_to_rgb
        return None if matrix is None else cv2.invert(np.array(matrix))[1]


def noise(height: int, width: int, channels: int = 3, *, wide: bool = False, seed: int = 0) -> NDArray:
    values = np.random.default_rng(seed).integers(0, 65536 if wide else 256, (height, width, channels))
    return values.astype(np.uint16 if wide else np.uint8)


def scene(
    kind: FrameKind | None = None, *, size: tuple[int, int] = (HEIGHT, WIDTH),
    tir_size: tuple[int, int] | None = None, matrix: NDArray | None = None,
) -> Scene:  # fmt: skip
    kind = kind or FrameKind()
    config = TrackerConfig(
        color="bgr" if kind.rgb_flipped else "rgb",
        tir_range=(9000, 50000) if kind.tir_wide else None,
        tir_to_rgb=None if matrix is None else tuple(map(tuple, matrix.tolist())),
    )
    tir = noise(*(tir_size or size), kind.tir_channels, wide=kind.tir_wide, seed=1)
    return Scene(noise(*size), tir, config, kind)


def requests_of(boxes: Sequence[Box], factor: float, device: torch.device) -> Tensor:
    """New searches of targets that lie in the pool as they do in the batch."""
    rows = [[*box, factor, 0.0, 0.2, 1.0, pool_row] for pool_row, box in enumerate(boxes)]
    return torch.tensor(rows, dtype=torch.float64, device=device)


def uploaded(frame: NDArray, part: Rectangle, spare: int, device: torch.device) -> Tensor:
    """The rectangle, and more behind it, which must not show."""
    cut = frame[part.row : part.row + part.rows, part.column : part.column + part.columns]
    rest = np.full(spare, 77, frame.dtype)
    return torch.from_numpy(np.concatenate([cut.ravel(), rest])).to(device)


def launch(
    device: torch.device, what: Scene, boxes: Sequence[Box], *, factor: float = FACTOR, size: int = SIZE,
    patch: int = PATCH, dtype: torch.dtype = torch.float32, tile: tuple[int, int] = (32, 32), spare: int = 50,
    parts: tuple[Rectangle, Rectangle] | None = None, requests: Tensor | None = None, state: Tensor | None = None,
    present: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The kernel's patches; every target is new and both its modalities are there, unless said otherwise."""
    parts = parts or (Rectangle(0, 0, *what.rgb.shape[:2]), Rectangle(0, 0, *what.tir.shape[:2]))
    geometry = torch.full((2, layout.GEOMETRY.value), NAN, dtype=torch.float64)
    geometry[:, [layout.LOW.value, layout.HIGH.value]] = 0
    for row, frame, part in zip(geometry, (what.rgb, what.tir), parts, strict=True):
        row[: layout.LOW.value] = torch.tensor([*frame.shape[:2], part.row, part.column, part.rows, part.columns])
    if what.config.tir_range is not None:
        geometry[1, layout.LOW.value : layout.INVERSE.value] = torch.tensor(what.config.tir_range)
    inverse = what.inverse()
    if inverse is not None:
        geometry[1, layout.INVERSE.value :] = torch.from_numpy(inverse).flatten()
    many = len(boxes)
    room = PoisonedRoom(device)
    frames = Uploaded(
        rgb=uploaded(what.rgb, parts[0], spare, device),
        tir=uploaded(what.tir, parts[1], spare, device),
        geometry=geometry.to(device),
        requests=requests_of(boxes, factor, device) if requests is None else requests,
        present=torch.ones(2, many, dtype=torch.int32, device=device) if present is None else present,
        kind=what.kind,
    )
    if state is None:
        state = torch.full((many, layout.STATE.value), NAN, dtype=torch.float64, device=device)
    settings = fixed(Tiles(*tile))
    out = crop(frames, state, size=size, patch=patch, dtype=dtype, room=room, settings=settings).run()
    assert out is room.buffers["patches"]
    assert not room.unwritten()
    return out.cpu()


def expected(what: Scene, boxes: Sequence[Box], factor: float = FACTOR, size: int = SIZE, patch: int = PATCH) -> Tensor:
    """The host's crops as the network's patches [2, B, tokens, 3 * patch^2] float32."""
    pair = what.prepared()
    images = [
        [preprocess.crop(frame, box, factor, size).image for box in boxes]
        for frame in (pair.rgb, pair.tir)
        if frame is not None
    ]
    pixels = torch.from_numpy(np.array(images)).permute(0, 1, 4, 2, 3)
    return (twins.patches(pixels.float(), patch) - 128) / 128


def assert_equal(found: Tensor, wanted: Tensor) -> None:
    off = (found.float() - wanted).abs() * 128
    worst = off.flatten(2).max(-1).values.tolist()
    assert torch.equal(found.float(), wanted), f"levels off, by modality and target: {worst}"


def assert_as_host(device: torch.device, what: Scene, boxes: Sequence[Box], **sizes: Any) -> None:
    assert_equal(launch(device, what, boxes, **sizes), expected(what, boxes, **sizes))


@pytest.mark.parametrize("dtype", DTYPES)
def test_borders(device: torch.device, dtype: torch.dtype) -> None:
    what = scene()
    assert_equal(launch(device, what, BORDERS, dtype=dtype), expected(what, BORDERS))


def test_sides(device: torch.device) -> None:
    """From one pixel over identity and exact halves to many times the crop's size."""
    sides = [1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65, 96, 128, 129, 250, 777]
    boxes: list[Box] = [(48 - s / 4, 30 - s / 4, s / 2, s / 2) for s in sides]
    assert [preprocess.crop_window(box, FACTOR).side for box in boxes] == sides
    assert_as_host(device, scene(), boxes)


MATRIX = np.array([[1.2, 0.06, 8.2], [-0.04, 1.0, 7.5], [4e-4, -3e-4, 1.0]])  # all four borders lie in the grid


SCALED = FrameKind(tir_map="scaled")
KINDS = {
    "bgr": (FrameKind(rgb_flipped=True, tir_flipped=True), None, 7),
    "grey": (FrameKind(rgb_flipped=True, tir_channels=1), None, 7),
    "grey-16-bit": (FrameKind(tir_channels=1, tir_wide=True), None, 7),
    "bgr-16-bit": (FrameKind(rgb_flipped=True, tir_flipped=True, tir_wide=True), None, 7),
    # A resize inside a resize, each rounded to 8 bits.
    "scaled upward": (SCALED, (48, 64), 10),
    "scaled, halved": (SCALED, (122, 192), 10),
    "scaled, mixed": (SCALED, (33, 171), 10),
    "scaled, one less": (SCALED, (61, 95), 10),
    "scaled, grey-16-bit": (replace(SCALED, tir_channels=1, tir_wide=True), (48, 64), len(BORDERS)),
}


@pytest.mark.parametrize(("kind", "tir_size", "count"), KINDS.values(), ids=KINDS)
def test_kinds_of_frames(device: torch.device, kind: FrameKind, tir_size: tuple[int, int] | None, count: int) -> None:
    assert_as_host(device, scene(kind, tir_size=tir_size), BORDERS[:count])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("wide", [False, True], ids=["8-bit", "16-bit"])
def test_warped_thermal(device: torch.device, channels: int, *, wide: bool) -> None:
    """Bit-identical to OpenCV where the processor has the operation that both use, else within one level."""
    kind = FrameKind(tir_channels=channels, tir_wide=wide, tir_map="homography")
    what = scene(kind, tir_size=(48, 64), matrix=MATRIX)
    pair = what.prepared()
    assert pair.tir is not None
    assert (pair.tir == 0).all(-1).mean() > 0.05, "the warp was to leave some of the grid empty"
    found, wanted = launch(device, what, BORDERS), expected(what, BORDERS)
    if cv2.checkHardwareSupport(FMA):
        assert_equal(found, wanted)
    assert float((found - wanted).abs().max()) <= 1 / 128
    assert float((found != wanted).float().mean()) < 0.01


def test_warp_with_its_horizon_in_the_frame(device: torch.device) -> None:
    """Where the denominator passes zero nothing is read that is not there, and nothing fails."""
    matrix = np.linalg.inv(np.array([[1.0, 0, 0], [0, 1, 0], [-0.02, 0, 1.0]]))  # zero at column 50
    what = scene(FrameKind(tir_map="homography"), matrix=matrix)
    boxes = [(30.0, 20.0, 30.0, 30.0)]
    found, wanted = launch(device, what, boxes), expected(what, boxes)
    assert float((found - wanted).abs().max()) <= 1 / 128


def test_missing_modalities(device: torch.device) -> None:
    """By modality and target; a missing one shows the mean image, whatever its buffer holds."""
    what = scene()
    boxes = BORDERS[:3]
    present = torch.tensor([[1, 0, 0], [0, 1, 0]], dtype=torch.int32)
    found, wanted = launch(device, what, boxes, present=present.to(device)), expected(what, boxes)
    normalised_zero = torch.tensor([(255 * mean - 128) / 128 for mean in preprocess.PIXEL_MEAN])
    blank = twins.patches(normalised_zero[:, None, None].expand(3, SIZE, SIZE), PATCH)
    for modality in range(2):
        for target in range(3):
            here = bool(present[modality, target])
            assert_equal(
                found[modality, target][None, None], wanted[modality, target][None, None] if here else blank[None, None]
            )


def test_pool_in_another_order_than_the_batch(device: torch.device, guard: Guard) -> None:
    """Each carried box comes from its own pool row; an empty row of the batch has none, and none is changed."""
    what = scene()
    boxes = BORDERS[:4]
    requests = requests_of(boxes, FACTOR, device)
    pool_rows = [5, 0, -1, 3]  # the second target brings its own box
    requests[:, layout.POOL_ROW.value] = torch.tensor(pool_rows, dtype=torch.float64)
    requests[2, : layout.POOL_ROW.value] = 0
    state = torch.full((7, layout.STATE.value), -1234.5, dtype=torch.float64, device=device)
    for target in (0, 3):
        state[pool_rows[target]] = requests[target, : layout.STATE.value]
        requests[target, : layout.STATE.value] = NAN
        requests[target, layout.CARRY.value] = 1
    before = state.clone()
    with guard:
        found = launch(device, what, boxes, requests=requests, state=state)
    assert torch.equal(state, before)
    searched = [0, 1, 3]
    assert_equal(found[:, searched], expected(what, [boxes[target] for target in searched]))


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (5, 5, 0, 7), (NAN, NAN, NAN, NAN), (3, 3, math.inf, 5)], ids=str)
def test_targets_without_a_box(device: torch.device, box: Box, guard: Guard) -> None:
    """An empty row, or one whose result was not finite, disturbs no other target and reads nothing stray."""
    what = scene(SCALED, tir_size=(48, 64))
    with guard:
        found = launch(device, what, [box, BORDERS[0]], size=16)
    assert torch.isfinite(found).all()
    assert_equal(found[:, 1:], expected(what, [BORDERS[0]], size=16))


@pytest.mark.parametrize(("kind", "matrix"), [
    (replace(SCALED, tir_channels=1, tir_wide=True), None), (FrameKind(tir_map="homography"), MATRIX),
], ids=["scaled", "homography"])  # fmt: skip
def test_bounds(device: torch.device, guard: Guard, kind: FrameKind, matrix: NDArray | None) -> None:
    """Buffers without a value to spare; every program writes its own part."""
    what = scene(kind, size=(33, 47), tir_size=(30, 40), matrix=matrix)
    with guard:
        found = launch(device, what, [(-5, -5, 60, 60), (-40, 3, 9, 9)], size=24, tile=(16, 16), spare=0)
    assert torch.isfinite(found).all()


def test_tiles_that_do_not_divide(device: torch.device) -> None:
    found = launch(device, scene(), BORDERS[:2], size=40, patch=10, tile=(16, 32))
    assert_equal(found, expected(scene(), BORDERS[:2], size=40, patch=10))


@pytest.mark.parametrize("tir_map", ["same", "scaled", "homography"])
def test_part_of_the_frames(device: torch.device, tir_map: str) -> None:
    """Cropping from what `upload` says is needed equals cropping from everything."""
    tir_size = None if tir_map == "same" else (48, 64)
    matrix = MATRIX if tir_map == "homography" else None
    what = scene(FrameKind(tir_map=tir_map), tir_size=tir_size, matrix=matrix)  # type: ignore[arg-type]
    boxes: list[Box] = [(50, 20, 7, 7), (60, 30, 5, 5)]
    visible = rectangle_of([preprocess.crop_window(box, FACTOR) for box in boxes], (HEIGHT, WIDTH))
    inverse = what.inverse()
    if tir_map == "same":
        thermal = visible
    elif inverse is None:
        thermal = scaled_rectangle(visible, (HEIGHT, WIDTH), (48, 64))
    else:
        thermal = warped_rectangle(visible, inverse, (48, 64))
    assert visible.rows * visible.columns < HEIGHT * WIDTH / 4
    assert thermal.rows * thermal.columns < what.tir.shape[0] * what.tir.shape[1] / 2
    assert torch.equal(launch(device, what, boxes, parts=(visible, thermal)), launch(device, what, boxes))


def test_what_was_not_uploaded_is_black(device: torch.device) -> None:
    what = scene()
    boxes = [BORDERS[0]]
    part = Rectangle(22, 41, 6, 9)
    black = replace(what, rgb=np.zeros_like(what.rgb), tir=np.zeros_like(what.tir))
    for into, frame in ((black.rgb, what.rgb), (black.tir, what.tir)):
        into[22:28, 41:50] = frame[22:28, 41:50]
    assert_equal(launch(device, what, boxes, parts=(part, part)), expected(black, boxes))


def test_real_size(device: torch.device) -> None:
    what = scene(size=(480, 640))
    boxes: list[Box] = [(301.7, 188.2, 55.5, 81.25), (590.0, 420.5, 70.0, 60.0)]
    found = launch(device, what, boxes, factor=4.0, size=256, patch=16, tile=(256, 256) if INTERPRETED else (8, 64))
    assert_equal(found, expected(what, boxes, factor=4.0, size=256, patch=16))


def test_8k_frame(device: torch.device) -> None:
    """Offsets of a hundred million."""
    height, width = 4320, 7680
    frame = np.zeros((height, width, 3), np.uint8)
    frame[-300:, -300:] = noise(300, 300)
    assert_as_host(device, Scene(frame, frame, TrackerConfig(), FrameKind()), [(width - 130.3, height - 101.9, 60, 60)])


def test_patches_fit_a_convolution() -> None:
    """The twin: a product with the flattened weight is the convolution. In whole numbers, so exactly."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(-9, 10, (2, 3, 3, 24, 16), generator=generator).double()
    weight = torch.randint(-9, 10, (5, 3, 8, 8), generator=generator).double()
    wanted = torch.nn.functional.conv2d(images.flatten(0, 1), weight, stride=8).flatten(2).transpose(1, 2)
    assert torch.equal((twins.patches(images, 8) @ weight.flatten(1).T).flatten(0, 1), wanted)


@triton.jit
def _windows_kernel(boxes_ptr, out_ptr, many, COUNT: tl.constexpr):  # noqa: ANN001, ANN202, N803 - Triton's own types
    at = tl.arange(0, COUNT)
    ok = at < many
    x = tl.load(boxes_ptr + at * 5, mask=ok, other=0.0)
    y = tl.load(boxes_ptr + at * 5 + 1, mask=ok, other=0.0)
    w = tl.load(boxes_ptr + at * 5 + 2, mask=ok, other=0.0)
    h = tl.load(boxes_ptr + at * 5 + 3, mask=ok, other=0.0)
    factor = tl.load(boxes_ptr + at * 5 + 4, mask=ok, other=0.0)
    left, top, side = window_of(x, y, w, h, factor)
    tl.store(out_ptr + at * 3, left, mask=ok)
    tl.store(out_ptr + at * 3 + 1, top, mask=ok)
    tl.store(out_ptr + at * 3 + 2, side, mask=ok)


def test_windows_round_as_python_does(device: torch.device) -> None:
    """Boxes in quarters, where halves and whole sides are frequent, and arbitrary ones."""
    rng = np.random.default_rng(3)
    quarters = rng.integers(-4000, 4000, (2000, 4)) / 4
    quarters[:, 2:] = np.abs(quarters[:, 2:]) + 0.25
    quarters[::2, 3] = quarters[::2, 2]  # squares, whose root is exact
    anywhere = rng.uniform(-900, 900, (2000, 4))
    anywhere[:, 2:] = np.abs(anywhere[:, 2:]) + 0.01
    boxes = np.concatenate([quarters, anywhere])
    rows = np.column_stack([boxes, rng.choice([1.0, 2.0, 4.0, 3.7, 4.4], len(boxes))])
    out = torch.full((len(boxes), 3), -7, dtype=torch.int32, device=device)
    _windows_kernel[(1,)](torch.from_numpy(rows).to(device), out, len(boxes), COUNT=4096, enable_fp_fusion=False)
    windows = [preprocess.crop_window(tuple(row[:4]), row[4]) for row in rows.tolist()]
    assert out.cpu().tolist() == [[window.left, window.top, window.side] for window in windows]


def test_wrong_arguments(device: torch.device) -> None:
    what, boxes = scene(), BORDERS[:1]
    requests = requests_of(boxes, 2.0, device)
    for change, message in (
        ({"size": 30}, "size=30: expected a multiple of patch=8"),
        ({"what": replace(what, kind=FrameKind(tir_wide=True))}, r"tir is torch\.uint8"),
        ({"what": replace(what, kind=FrameKind(tir_channels=2))}, r"tir_channels=2.*expected 1 or 3 channels"),
        ({"requests": requests.float()}, r"requests is torch\.float32"),
        ({"requests": requests[:, :-1].contiguous()}, r"requests is torch\.float64 \(1, 8\)"),
        ({"state": torch.zeros(1, 4, dtype=torch.float64, device=device)}, r"state is torch\.float64 \(1, 4\)"),
        ({"present": torch.ones(2, 1, dtype=torch.bool, device=device)}, r"present is torch\.bool"),
    ):
        with pytest.raises(ValueError, match=message):
            launch(device, **({"what": what, "boxes": boxes} | change))
