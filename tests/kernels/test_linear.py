"""Linear layers of both branches against their twin."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools

import pytest
import torch
from support import DTYPES, INTERPRETED, PoisonedRoom, assert_as_exact, big, fixed, poison
from torch import Tensor

from ckd_fast.kernels.launch import Choice, LaunchSettings, TileRequest, Tiles
from ckd_fast.kernels.linear import (
    Float8Layer,
    FoldedLayer,
    PlainLayer,
    Rows,
    RowStatistics,
    float8_layer,
    fold_norm,
    linear,
)
from ckd_fast.reference import twins

LARGE = big(128, 128, 128)
SETTINGS = fixed(LARGE)
EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class Layer:
    """Random inputs in one precision, and the same numbers for twin and exact result."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    gamma: Tensor
    beta: Tensor
    residual: Tensor

    @property
    def plain(self) -> PlainLayer:
        return PlainLayer(self.weight, self.bias)

    @property
    def folded(self) -> FoldedLayer:
        return fold_norm(self.weight, self.bias, self.gamma, self.beta, EPS, self.x.dtype)

    def rows(self, tile: int) -> Rows:
        """x with statistics in tiles of so many columns."""
        return Rows(self.x, RowStatistics(twins.row_statistics(self.x, tile).float().contiguous(), tile))

    def to(self, dtype: torch.dtype) -> Layer:
        return Layer(*(getattr(self, f.name).to(dtype) for f in dataclasses.fields(self)))

    def twin_and_exact(
        self, *, norm: bool = False, gelu: bool = False, residual: Tensor | None = None,
        token_index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Plain PyTorch in the precision of x, and in float64."""
        both = []
        for given in (self, self.to(torch.float64)):
            around = {"gamma": given.gamma, "beta": given.beta, "eps": EPS} if norm else {}
            around |= {"residual": None if residual is None else residual.to(given.x.dtype), "token_index": token_index}
            both.append(twins.linear(given.x, given.weight, given.bias, gelu=gelu, **around))
        return both[0], both[1]


def layer(device: torch.device, dtype: torch.dtype, tokens: int = 53, k: int = 96, f: int = 160) -> Layer:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype).to(device)

    return Layer(
        x=draw(2, 3, tokens, k),
        weight=draw(2, f, k, scale=k**-0.5),
        bias=draw(2, f).float(),
        gamma=draw(2, k, scale=0.2) + 1,
        beta=draw(2, k, scale=0.2),
        residual=draw(2, 3, tokens, f),
    )


def assert_statistics(found: RowStatistics, tokens: Tensor) -> None:
    """They are of the rounded tokens."""
    assert_as_exact(found.values, *(twins.row_statistics(x, found.tile) for x in (tokens, tokens.double())))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("split_k", "depth"), [(1, 128), (3, 32)])
def test_bias_gelu_residual(device: torch.device, dtype: torch.dtype, split_k: int, depth: int) -> None:
    """With a last step that reaches over the 96 sums, and with three whole parts of them."""
    given, room = layer(device, dtype), PoisonedRoom(device)
    settings = fixed(dataclasses.replace(LARGE, depth=depth), split_k)
    operation = linear(Rows(given.x), given.plain, gelu=True, residual=given.residual, room=room, settings=settings)
    assert operation.run().tokens is room.buffers["tokens"]
    assert set(room.buffers) == ({"tokens"} if split_k == 1 else {"tokens", "partial"})
    assert not room.unwritten()
    assert_as_exact(operation.out.tokens, *given.twin_and_exact(gelu=True, residual=given.residual))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("offset", "factor", "tile", "depth"), [(0, 1, 40, 128), (30, 1, 40, 32), (0, 1000, 96, 32)],
    ids=["centred", "mean-30-std", "one-huge-channel"],
)  # fmt: skip
def test_folded_norm(
    device: torch.device, dtype: torch.dtype, offset: float, factor: float, tile: int, depth: int
) -> None:
    """With statistics in tiles of 40 of 96 columns, or in one; the mean may be 30 standard deviations."""
    given = layer(device, dtype)
    x = (given.x.float() + offset).to(dtype)
    x[..., 7] *= factor
    given = dataclasses.replace(given, x=x)
    settings = fixed(dataclasses.replace(LARGE, depth=depth))
    out = linear(given.rows(tile), given.folded, room=PoisonedRoom(device), settings=settings).run()
    assert_as_exact(out.tokens, *given.twin_and_exact(norm=True))


@pytest.mark.parametrize("split_k", [1, 2])
def test_index_into_input_statistics_and_residual(device: torch.device, split_k: int) -> None:
    given, room = layer(device, torch.float32), PoisonedRoom(device)
    chosen = torch.stack([torch.randperm(53)[:31] for _ in range(6)]).reshape(2, 3, 31).int().to(device)
    out = linear(
        given.rows(64), given.folded, residual=given.residual, token_index=chosen, room=room,
        settings=fixed(LARGE, split_k),
    ).run()  # fmt: skip
    assert not room.unwritten()
    assert_as_exact(out.tokens, *given.twin_and_exact(norm=True, residual=given.residual, token_index=chosen))


@pytest.mark.parametrize("split_k", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_for_the_next_norm(device: torch.device, dtype: torch.dtype, split_k: int) -> None:
    """Of the rounded result, in tiles of 64 of 160 columns, even where the mean is large."""
    given, room = layer(device, dtype), PoisonedRoom(device)
    given, settings = (
        dataclasses.replace(given, bias=given.bias + 50),
        fixed(dataclasses.replace(LARGE, columns=64), split_k),
    )
    out = linear(Rows(given.x), given.plain, write_statistics=True, room=room, settings=settings).run()
    assert not room.unwritten()
    assert out.statistics is not None
    assert out.statistics.tile == 64
    assert out.statistics.values is room.buffers["statistics"]
    assert_statistics(out.statistics, out.tokens)


@pytest.mark.parametrize("split_k", [1, 2])
def test_patch_embedding_into_the_middle(device: torch.device, split_k: int) -> None:
    """Positions as a residual for all targets, written behind the template tokens, which stay untouched."""
    given, room = layer(device, torch.float32), PoisonedRoom(device)
    positions = torch.randn(2, 53, 160, device=device)
    tile = LARGE.columns
    statistics = RowStatistics(torch.full((2, 3, 70, -(-160 // tile), 2), 9.0, device=device), tile)
    into = Rows(torch.full((2, 3, 70, 160), 7.0, device=device), statistics)
    poison(into.tokens[:, :, 17:], statistics.values[:, :, 17:])
    operation = linear(
        Rows(given.x), given.plain, residual=positions, into=into, out_offset=17, room=room,
        settings=fixed(LARGE, split_k),
    )  # fmt: skip
    assert operation.run() is into
    assert set(room.buffers) == (set() if split_k == 1 else {"partial"}), "there is memory for the result already"
    assert not room.unwritten()
    found, stats = into.tokens, statistics.values
    assert_as_exact(found[:, :, 17:], *given.twin_and_exact(residual=positions))
    assert (found[:, :, :17] == 7).all()
    assert (stats[:, :, :17] == 9).all()
    assert_statistics(RowStatistics(stats[:, :, 17:], tile), found[:, :, 17:])


def test_two_runs_are_bit_identical(device: torch.device) -> None:
    given = layer(device, torch.float32)
    first, second = (linear(Rows(given.x), given.plain, settings=fixed(LARGE, 3)).run().tokens for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("split_k", [1, 2])
def test_memory_accesses(device: torch.device, guard: contextlib.AbstractContextManager, split_k: int) -> None:
    """Small odd sizes under the guard; every option on."""
    given, room = layer(device, torch.float32, tokens=11, k=20, f=23), PoisonedRoom(device)
    chosen = torch.tensor([[[3, 0, 10], [1, 2, 9], [5, 5, 5]]] * 2, dtype=torch.int32, device=device)
    operation = linear(
        given.rows(16), given.folded, gelu=True, residual=given.residual, token_index=chosen, out_offset=2,
        write_statistics=True, room=room, settings=fixed(Tiles(16, 16, 16), split_k),
    )  # fmt: skip
    with guard:
        out = operation.run()
    _, exact = given.twin_and_exact(norm=True, gelu=True, residual=given.residual, token_index=chosen)
    assert torch.allclose(out.tokens[:, :, 2:].double(), exact, atol=1e-4)
    # Two of five tokens lie in front of the offset: nothing else stays unwritten.
    assert room.unwritten() == {"tokens": 2 * 3 * 2 * 23, "statistics": 2 * 3 * 2 * 2 * 2}


def test_settings_reach_the_launches(device: torch.device) -> None:
    """Tiles as chosen for the request; precision and overlap as options of every launch."""
    given = layer(device, torch.float32)
    asked: list[TileRequest] = []

    def choose(request: TileRequest) -> Choice:
        asked.append(request)
        return Choice(Tiles(32, 64, 16, warps=8, stages=2), 2)

    settings = LaunchSettings(choose, tf32=True, overlap=True)
    (product,) = linear(Rows(given.x), given.plain, settings=settings, kernel="patch").launches
    assert [vars(request) for request in asked] == [
        {
            "kernel": "patch",
            "dtype": "float32",
            "groups": 2,
            "rows": 159,
            "columns": 160,
            "depth": 96,
            "statistics": False,
        }
    ]
    assert (product.name, product.request) == ("patch", asked[0])
    assert product.grid == (5 * 3, 2, 2)
    assert product.programs == 60
    assert product.options == {"num_warps": 8, "num_stages": 2, "launch_pdl": True}
    for name, value in {"PRECISION": "tf32", "ROWS": 32, "COLUMNS": 64, "DEPTH": 16, "OVERLAP": True}.items():
        assert product.arguments[name] == value
    assert LaunchSettings().precision == "ieee"
    assert not LaunchSettings().options


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    given = layer(device, torch.float32)
    weight, bias = given.weight, given.bias
    few = Rows(given.residual[:, :, :5].contiguous())
    wrong = Rows(given.residual, RowStatistics(torch.empty(2, 3, 53, 1, 2, device=device), 16))
    for arguments, error, message in (
        ({"layer": PlainLayer(weight[:, :, :-1], bias)}, ValueError, r"weight \(2, 160, 95\) .* do not fit"),
        ({"layer": PlainLayer(weight, bias[:, :-1])}, ValueError, r"bias \(2, 159\) do not fit"),
        ({"layer": PlainLayer(weight.half(), bias)}, TypeError, "weight is torch.float16 .* expected torch.float32"),
        ({"x": Rows(given.x.transpose(1, 2))}, ValueError, "contiguous"),
        ({"layer": given.folded}, ValueError, "needs the statistics"),
        ({"token_index": torch.zeros(2, 3, 4, device=device)}, ValueError, "is torch.float32 .* expected int32"),
        ({"into": few}, ValueError, r"\(2, 3, 5, 160\) has no room for 53 tokens"),
        ({"residual": given.residual[:, :1]}, ValueError, r"residual is \(2, 1, 53, 160\)"),
        ({"x": Rows(torch.empty(2, 2**16, 400, 96, device="meta"))}, ValueError, r"expected offsets below 2\^31"),
        ({"into": wrong}, ValueError, r"statistics are \(2, 3, 53, 1, 2\) in tiles of 16: expected"),
    ):
        with pytest.raises(error, match=message):
            linear(**({"x": Rows(given.x), "layer": given.plain, "settings": SETTINGS} | arguments))


def gelu_of(values: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """By a layer whose products are zero and whose bias is the values, in float32 in every precision."""
    x, weight = torch.zeros(1, 1, 1, 16, dtype=dtype), torch.zeros(1, len(values), 16, dtype=dtype)
    nothing = PlainLayer(weight.to(device), values.float()[None].to(device))
    tiles = Tiles(16, 8192, 16) if INTERPRETED else Tiles(16, 64, 16)
    out = linear(Rows(x.to(device)), nothing, gelu=True, room=PoisonedRoom(device), settings=fixed(tiles)).run()
    return out.tokens.flatten().cpu()


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_of_every_value(device: torch.device, dtype: torch.dtype) -> None:
    """All finite values of 16 bits, and a dense sweep in float32; small and large ones each by their own error."""
    x = torch.linspace(-12, 12, 2**16) if dtype == torch.float32 else torch.arange(-(2**15), 2**15).short().view(dtype)
    x = x[x.isfinite()]
    found, twin, exact = gelu_of(x, dtype, device), *(torch.nn.functional.gelu(values) for values in (x, x.double()))
    edges = [0, 0.125, 0.25, 0.5, 1, 2, 4, 8, float("inf")]
    for low, high in itertools.pairwise(edges):
        inside = (x.abs().double() >= low) & (x.abs().double() < high)
        assert_as_exact(found[inside], twin[inside], exact[inside])


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_gelu_for_16_bits_adds_little_to_rounding(device: torch.device, dtype: torch.dtype, rounding: float) -> None:
    """On any float32 value: 3.3e-5 of it beside the rounding, and nothing is left of a negative one beyond 4."""
    x = torch.linspace(-12, 12, 2**16)
    found, exact = gelu_of(x, dtype, device).double(), torch.nn.functional.gelu(x.double())
    assert ((found - exact).abs() <= 3.3e-5 * x.abs() + rounding * exact.abs() + 1e-7).all()
    assert (found[x <= -4] == 0).all()
    assert torch.equal(found[x >= 4], x[x >= 4].to(dtype).double())


def test_branches_that_share_weights(device: torch.device) -> None:
    given = layer(device, torch.float32)
    weight, bias = given.weight[:1].contiguous(), given.bias[:1]
    shared = PlainLayer(weight, bias)
    out = linear(Rows(given.x), shared, gelu=True, room=PoisonedRoom(device), settings=fixed(LARGE, 2)).run()
    both = dataclasses.replace(given, weight=weight.expand_as(given.weight), bias=bias.expand_as(given.bias))
    assert_as_exact(out.tokens, *both.twin_and_exact(gelu=True))


def float8_of(given: Layer, *, norm: bool) -> tuple[Float8Layer, Tensor, Tensor]:
    """The layer in float8, and the weight and bias that it was made of, a norm folded in."""
    weight, bias = given.weight.double(), given.bias.double()
    if norm:
        bias = bias + (weight @ given.beta.double()[:, :, None])[..., 0]
        weight = weight * given.gamma.double()[:, None, :]
    largest = torch.tensor([3.0, 2.5], dtype=torch.float64, device=weight.device)  # of normal values, so some are cut
    return float8_layer(weight, bias, largest, EPS if norm else None), weight, bias


def rounded(x: Tensor, scale: Tensor) -> Tensor:
    """As the kernel in front leaves it: in float8."""
    return twins.float8(x.float(), scale[:, None, None, None]).to(torch.float8_e4m3fn)


@pytest.mark.parametrize("split_k", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_float8_behind_a_norm(device: torch.device, dtype: torch.dtype, split_k: int) -> None:
    """What is multiplied is rounded to float8 as the twin rounds it; the result goes to float8 with a scale."""
    given, room = layer(device, dtype), PoisonedRoom(device)
    eight, weight, bias = float8_of(given, norm=True)
    settings = fixed(dataclasses.replace(LARGE, depth=128 if split_k == 1 else 32), split_k)
    plain_out = linear(given.rows(40), eight, gelu=True, room=room, settings=settings).run().tokens
    assert plain_out.dtype == dtype
    twin = twins.float8_linear(given.x.float(), weight, bias, eight.input_scale, eps=EPS, gelu=True).to(dtype)
    exact = twins.float8_linear(given.x.double(), weight, bias, eight.input_scale, eps=EPS, gelu=True)
    assert_as_exact(plain_out, twin, exact)
    scale = torch.tensor([0.01, 0.02], device=device)
    found = linear(given.rows(40), eight, gelu=True, out_scale=scale, room=room, settings=settings).run().tokens
    assert found.dtype == torch.float8_e4m3fn
    assert not room.unwritten()
    by = scale[:, None, None, None]
    assert_as_exact(found.float() * by, rounded(twin, scale).float() * by, exact.clamp(-448 * by, 448 * by))


@pytest.mark.parametrize("split_k", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_float8_on_rounded_inputs(device: torch.device, dtype: torch.dtype, split_k: int) -> None:
    """The result has the type of the residual; statistics and index work as ever."""
    given, room = layer(device, dtype), PoisonedRoom(device)
    eight, weight, bias = float8_of(given, norm=False)
    x = rounded(given.x, eight.input_scale)
    chosen = torch.stack([torch.randperm(53)[:31] for _ in range(6)]).reshape(2, 3, 31).int().to(device)
    out = linear(
        Rows(x), eight, residual=given.residual, token_index=chosen, write_statistics=True, room=room,
        settings=fixed(dataclasses.replace(LARGE, columns=64, depth=32), split_k),
    ).run()  # fmt: skip
    assert out.tokens.dtype == dtype
    assert not room.unwritten()
    twin, exact = (
        twins.float8_linear(
            x.to(wide), weight, bias, eight.input_scale, residual=given.residual.to(wide), token_index=chosen
        )
        for wide in (torch.float32, torch.float64)
    )
    assert_as_exact(out.tokens, twin.to(dtype), exact)
    assert out.statistics is not None
    assert_statistics(out.statistics, out.tokens)


def test_float8_refuses_what_it_would_not_round(device: torch.device) -> None:
    given = layer(device, torch.float32)
    behind, alone = (float8_of(given, norm=norm)[0] for norm in (True, False))
    eight = rounded(given.x, behind.input_scale)
    for x, bad, error, message in (
        (
            Rows(given.x),
            alone,
            TypeError,
            "x is torch.float32: a layer in float8 rounds its input itself behind a norm",
        ),
        (dataclasses.replace(given.rows(40), tokens=eight), behind, TypeError, "x is torch.float8_e4m3fn"),
        (Rows(given.x), behind, ValueError, "needs the statistics"),
    ):
        with pytest.raises(error, match=message):
            linear(x, bad, settings=SETTINGS)
    with pytest.raises(ValueError, match=r"out_scale is torch\.float64"):
        linear(given.rows(40), behind, out_scale=torch.ones(2, dtype=torch.float64, device=device), settings=SETTINGS)
