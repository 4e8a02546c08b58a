"""What every launch says of itself: nothing runs before it is told to, and it reads and writes what it lists."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from interpreter import guarded
from support import INTERPRETED, PoisonedRoom, fixed, one_call
from torch import Tensor

from ckd_fast.kernels.attention import DecidingTokens, attention, deciding_tokens
from ckd_fast.kernels.crop import crop
from ckd_fast.kernels.decode import constants, decode
from ckd_fast.kernels.distillation import Moments, Reading, distillation_backward, distillation_forward
from ckd_fast.kernels.elimination import decide, gather
from ckd_fast.kernels.head import convolution, last_convolution, sum_taps
from ckd_fast.kernels.launch import Launch, Operation, Tiles, check
from ckd_fast.kernels.layout import Uploaded
from ckd_fast.kernels.linear import PlainLayer, Rows, RowStatistics, fold_norm, linear

TARGETS, TEMPLATE, SEARCH, KEEP = 2, 4, 9, 5
SETTINGS = fixed(Tiles(16, 16, 16))
Build = Callable[[torch.device, PoisonedRoom], Operation]


def rand(device: torch.device, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.rand(shape) + 0.1).to(device, dtype)


def whole(device: torch.device, *shape: int, below: int = 1) -> Tensor:
    return torch.randint(0, below, shape, dtype=torch.int32, device=device)


def layer(device: torch.device, room: PoisonedRoom, dtype: torch.dtype, split_k: int) -> Operation:
    """With every option of a linear layer."""
    weight, bias = rand(device, 2, 24, 32, dtype=dtype), rand(device, 2, 24)
    folded = fold_norm(weight, bias, rand(device, 2, 32), rand(device, 2, 32), 1e-6, dtype)
    statistics = RowStatistics(rand(device, 2, TARGETS, SEARCH, 2, 2), 16)
    return linear(
        Rows(rand(device, 2, TARGETS, SEARCH, 32, dtype=dtype), statistics), folded, gelu=True,
        residual=rand(device, 2, TARGETS, SEARCH, 24, dtype=dtype),
        token_index=whole(device, 2, TARGETS, KEEP, below=SEARCH), write_statistics=True, room=room,
        settings=fixed(Tiles(16, 16, 16), split_k),
    )  # fmt: skip


def deciding(device: torch.device) -> DecidingTokens:
    return deciding_tokens(torch.tensor([[True, False, True, False], [False, True, True, False]], device=device))


def attending(device: torch.device, room: PoisonedRoom) -> Operation:
    q, k, v = (rand(device, 2, TARGETS, 3, TEMPLATE + SEARCH, 16) for _ in range(3))
    return attention(q, k, v, deciding=deciding(device), room=room, settings=SETTINGS)


def ranking(device: torch.device, room: PoisonedRoom) -> Operation:
    return decide(
        rand(device, 2, TARGETS, 3, 2, SEARCH), deciding(device),
        torch.arange(SEARCH, dtype=torch.int32, device=device).expand(2, TARGETS, SEARCH).contiguous(), KEEP,
        elimination="mce", present=whole(device, 2, TARGETS) + 1,
        token_of_cell=room("token_of_cell", (2, TARGETS, SEARCH), torch.int32), room=room,
    )  # fmt: skip


def gathering(device: torch.device, room: PoisonedRoom) -> Operation:
    return gather(rand(device, 2, TARGETS, SEARCH, 24), whole(device, 2, TARGETS, KEEP, below=SEARCH), room)


def adding_taps(device: torch.device, room: PoisonedRoom) -> Operation:
    return sum_taps(
        rand(device, 2, TARGETS, KEEP, 9 * 24), whole(device, 2, TARGETS, SEARCH, below=KEEP) + TEMPLATE,
        rand(device, 24), template_tokens=TEMPLATE, room=room, settings=SETTINGS,
    )  # fmt: skip


def convolving(device: torch.device, room: PoisonedRoom, *more: PlainLayer) -> Operation:
    x, convolved = rand(device, TARGETS, SEARCH, 3 * 16), PlainLayer(rand(device, 3, 8, 9, 16), rand(device, 3, 8))
    return (last_convolution if more else convolution)(x, convolved, *more, room=room, settings=SETTINGS)


def making_maps(device: torch.device, room: PoisonedRoom) -> Operation:
    return convolving(device, room, PlainLayer(rand(device, 3, 2, 8), rand(device, 3, 2)))


def call(device: torch.device) -> tuple[Uploaded, Tensor]:
    """Frames of 20 x 30 and the pool's state: the second target carries on from it, the first does not."""
    frames = [torch.randint(1, 255, (20 * 30 * 3,), dtype=torch.uint8, device=device) for _ in range(2)]
    requests = [[8.0, 7, 6, 5, 2, 0, 0.5, 1.7, 2], [0.0, 0, 0, 0, 0, 1, 0.5, 1.7, 0]]
    state = torch.tensor([9.0, 4, 5, 6, 2], dtype=torch.float64, device=device).repeat(3, 1)
    return one_call(device, (20, 30), requests, frames), state


def cropping(device: torch.device, room: PoisonedRoom) -> Operation:
    uploaded, state = call(device)
    return crop(uploaded, state, size=16, patch=8, dtype=torch.float32, room=room, settings=SETTINGS)


def decoding(device: torch.device, room: PoisonedRoom) -> Operation:
    uploaded, state = call(device)
    maps, window = rand(device, TARGETS, 3, 2, SEARCH), rand(device, SEARCH)
    return decode(maps, window, uploaded, state, constants(2.0, device), search_size=16, room=room)


def distilling(device: torch.device, _room: PoisonedRoom) -> Operation:
    return distillation_forward(rand(device, 4, 2, 9, 11), Reading(), tile_columns=8)


def distilling_backward(device: torch.device, _room: PoisonedRoom) -> Operation:
    features, moments = rand(device, 4, 2, 9, 11), Moments(*(rand(device, 4, 2, 11) for _ in range(3)))
    reading = Reading(move_teachers=True)
    return distillation_backward(features, moments, rand(device, 3), reading, tile_tokens=8, tile_columns=8)


KINDS: dict[str, Build] = {
    "crop": cropping,
    "linear": lambda device, room: layer(device, room, torch.float32, 1),
    "linear, 16 bits": lambda device, room: layer(device, room, torch.float16, 1),
    "linear, split": lambda device, room: layer(device, room, torch.float32, 2),
    "linear, split, 16 bits": lambda device, room: layer(device, room, torch.float16, 2),
    "attention": attending,
    "rank": ranking,
    "gather": gathering,
    "tap_sum": adding_taps,
    "convolution": convolving,
    "last_convolution": making_maps,
    "decode": decoding,
    "distillation forward": distilling,
    "distillation backward": distilling_backward,
}


def arguments_at(launch: Launch, addresses: set[int]) -> set[str]:
    """The launch's arguments at some addresses, by name, so that a failure says which they are."""
    return {
        name
        for name, value in launch.arguments.items()
        if isinstance(value, Tensor) and value.data_ptr() in addresses
    }  # fmt: skip


def addresses_of(*tensors: Tensor) -> set[int]:
    return {tensor.data_ptr() for tensor in tensors}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_runs_before_it_is_told_to(device: torch.device, kind: str) -> None:
    room = PoisonedRoom(device)
    operation = KINDS[kind](device, room)
    assert room.unwritten() == {name: buffer.numel() for name, buffer in room.buffers.items()}
    assert operation.run() is operation.out
    assert not room.unwritten()


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_a_launch_writes_changes(device: torch.device, kind: str) -> None:
    for launch in KINDS[kind](device, PoisonedRoom(device)).launches:
        assert addresses_of(*launch.reads, *launch.writes) <= addresses_of(
            *(value for value in launch.arguments.values() if isinstance(value, Tensor))
        )
        memory = {value.data_ptr(): value for value in launch.arguments.values() if isinstance(value, Tensor)}
        before = {address: value.clone() for address, value in memory.items()}
        launch.run()
        changed = {
            address
            for address, value in memory.items()
            if not torch.equal(value.view(torch.uint8), before[address].view(torch.uint8))  # NaN equals itself
        }
        # Counts of programs are zero again in the end.
        assert arguments_at(launch, changed) == arguments_at(launch, addresses_of(*launch.writes)) - {"arrivals_ptr"}


@pytest.mark.skipif(not INTERPRETED, reason="only the interpreter sees single loads and stores")
@pytest.mark.parametrize("kind", KINDS)
def test_a_launch_loads_and_stores_exactly_what_it_lists(device: torch.device, kind: str) -> None:
    for launch in KINDS[kind](device, PoisonedRoom(device)).launches:
        with guarded() as seen:
            launch.run()
        assert arguments_at(launch, seen.loaded) == arguments_at(launch, addresses_of(*launch.reads)), launch.name
        assert arguments_at(launch, seen.stored) == arguments_at(launch, addresses_of(*launch.writes)), launch.name


@pytest.mark.parametrize("kind", KINDS)
def test_what_tables_show_of_a_launch(device: torch.device, kind: str) -> None:
    (launch,) = KINDS[kind](device, PoisonedRoom(device)).launches
    assert launch.name == kind.split(",", maxsplit=1)[0]
    assert launch.what
    assert launch.programs >= 1
    assert launch.bytes > 0
    assert launch.flops >= 0
    assert (launch.request is None) == (launch.choice is None)


def test_a_tensor_that_a_kernel_cannot_read_is_refused(device: torch.device) -> None:
    check("state", torch.zeros(2, 3, device=device), torch.float32, (2, 3))
    for tensor, message in (
        (torch.zeros(2, 3, device=device).half(), r"state is torch\.float16 \(2, 3\)"),
        (torch.zeros(3, 2, device=device), r"state is torch\.float32 \(3, 2\)"),
        (torch.zeros(3, 2, device=device).T, r"state is non-contiguous torch\.float32 \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message + r": expected contiguous torch\.float32 \(2, 3\)"):
            check("state", tensor, torch.float32, (2, 3))
