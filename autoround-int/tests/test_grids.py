# SPDX-License-Identifier: Apache-2.0
"""The grids: what is stored is what was tuned, at every shape and width; edges; gradients not recorded."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from auto_round import QuantizationScheme
from auto_round.data_type.grouping import group_count, group_shape
from auto_round.errors import SchemeError
from auto_round_int.asymmetric import IntAsym
from auto_round_int.grid import Settings, group_range, wide_codes
from auto_round_int.restricted import IntSymGptq
from auto_round_int.symmetric import IntSym

EACH = pytest.mark.parametrize("data_type", [IntSym(), IntAsym(), IntSymGptq()], ids=lambda d: d.name)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def scheme_of(data_type, bits=4, group_size=32):
    return QuantizationScheme(
        bits=bits, group_size=group_size, sym=data_type.name != "int_asym", data_type=data_type.name
    )


def same_bits(one, other):
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return one.dtype == other.dtype and torch.equal(one.view(integer), other.view(integer))


@EACH
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    cols=st.integers(1, 100),
    bits=st.integers(2, 8),
    group_size=st.sampled_from([-1, 0, 16, 32, 64]),
    dtype=st.sampled_from([*DTYPES, torch.float64]),
    scale_dtype=st.sampled_from(DTYPES),
    learnt=st.booleans(),
    size=st.sampled_from([1e-7, 1.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_codes_decode_to_what_was_tuned(
    data_type, rows, cols, bits, group_size, dtype, scale_dtype, learnt, size, seed
):
    draw = torch.Generator().manual_seed(seed)
    weight = (torch.randn(rows, cols, generator=draw) * size).to(dtype)
    offers = {"scale_dtype": scale_dtype}
    if learnt:
        count = group_count((rows, cols), group_size)
        offers["v"] = torch.rand(group_shape((rows, cols), group_size), generator=draw) - 0.5
        offers["min_scale"] = torch.rand(count, generator=draw) * 2
        offers["max_scale"] = torch.rand(count, generator=draw) * 2
    rounded, scale, _ = data_type.quant_tensor(weight, bits, group_size, **offers)
    codes = data_type.encode(weight, scheme_of(data_type, bits, group_size), **offers)
    assert same_bits(data_type.decode(codes), rounded)
    assert rounded.shape == weight.shape
    assert codes.tensors["codes"].shape == weight.shape
    assert codes.tensors["scale"].dtype == scale.dtype == scale_dtype
    assert codes.tensors["scale"].numel() == group_count((rows, cols), group_size)[0]
    assert torch.isfinite(rounded).all()


@pytest.mark.parametrize("zero_point", [None, 7.0])
@pytest.mark.parametrize("learnt", [False, True])
def test_codes_are_rounded_half_to_even_however_far_weights_lie_from_the_grid(zero_point, learnt):
    """Against numpy's float32 arithmetic and Python's own `round`, which is exact."""
    near = torch.arange(-40, 40) / 4
    far = torch.tensor([2.0**22 - 0.5, 2.0**22 + 0.5, 2.0**23 + 1, 1.5 * 2**23, 2.0**24, 3e9, 1e37])
    wide = torch.cat([near, near.nextafter(torch.tensor(99.0)), near * 0.9999, far, -far]).reshape(1, -1)
    scale, v = torch.tensor([[0.75]]), torch.linspace(-0.5, 0.5, wide.numel()).reshape(1, -1) if learnt else None
    zero = 0 if zero_point is None else int(zero_point)
    quotient = wide.numpy() / scale.numpy() + (v.numpy() if learnt else np.float32(0))
    expected = [min(max(round(float(q)) + zero, 0), 15) for q in quotient[0]]
    found = wide_codes(wide, scale, None if zero_point is None else torch.tensor([[zero_point]]), v, 0, 15)
    assert found[0].tolist() == expected
    assert not found.signbit().any()


@settings(max_examples=60, deadline=None)
@given(
    cols=st.sampled_from([31, 64, 65, 200]),
    dtype=st.sampled_from(DTYPES),
    shift=st.sampled_from([-5.0, 0.0, 5.0]),
    seed=st.integers(0, 99),
)
def test_the_range_of_a_group_is_that_of_its_values_and_zero(cols, dtype, shift, seed):
    draw = torch.Generator().manual_seed(seed)
    groups = (torch.randn(7, cols, generator=draw) + shift).to(dtype)
    groups[0], groups[1], groups[2, ::2] = 0.0, -0.0, torch.finfo(dtype).tiny
    low, high = group_range(groups, Settings.of(4, -1, torch.float32))
    wide = groups.float()
    assert torch.equal(low, wide.min(-1).values.clamp(max=0.0))
    assert torch.equal(high, wide.max(-1).values.clamp(min=0.0))


@EACH
def test_large_weights_are_worked_on_in_pieces_that_join(data_type, monkeypatch):
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
    v = torch.zeros(48, 32, requires_grad=True)
    whole = data_type.quant_tensor(weight, 3, 32, v)[0]
    (expected,) = torch.autograd.grad(whole.square().sum(), v)
    monkeypatch.setattr("auto_round_int.grid.CHUNK", 200)
    pieces = data_type.quant_tensor(weight, 3, 32, v)[0]
    (found,) = torch.autograd.grad(pieces.square().sum(), v)
    assert torch.equal(pieces, whole)
    assert torch.equal(found, expected)


@EACH
@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize(
    "row",
    [
        [0.0] * 32,
        [0.25] * 32,
        [-0.25] * 32,
        [1e-7] * 32,
        [1e4] * 32,
        [3e38] + [1.0] * 31,
        [-1e6, 1e6] * 16,
        [1e-30] * 32,
    ],
)
def test_degenerate_groups_stay_finite(data_type, scale_dtype, row):
    for bits in (2, 4, 8):
        rounded, scale, zero_point = data_type.quant_tensor(torch.tensor([row]), bits, 32, scale_dtype=scale_dtype)
        assert torch.isfinite(rounded).all()
        assert torch.isfinite(scale).all()
        assert ((zero_point >= 0) & (zero_point <= 2**bits - 1)).all() if torch.is_tensor(zero_point) else True


def test_a_zero_point_stays_within_its_bits():
    # The scale, 1.0035, becomes 1 in bfloat16.
    low = -255.9
    weight = torch.tensor([[low] + [0.0] * 31])
    _, scale, zero_point = IntAsym().quant_tensor(weight, 8, 32, scale_dtype=torch.bfloat16)
    assert (-low / scale.float()).round().item() == 256
    assert zero_point.item() == 255


def test_the_heavier_end_is_held_exactly():
    weight = torch.tensor([[1.0, -0.5, 0.25, 0.0], [-1.0, 0.5, 0.25, 0.0]])
    rounded, scale, zero_point = IntSym().quant_tensor(weight, 2, -1)
    assert scale.flatten().tolist() == [-0.5, 0.5]
    assert zero_point == 2
    assert torch.equal(rounded[:, 0], weight[:, 0])
    codes = IntSym().encode(weight, scheme_of(IntSym(), 2, -1))
    assert codes.tensors["codes"].tolist() == [[-2, 1, 0, 0], [-2, 1, 0, 0]]


def differentiate(data_type, weight, learnt, **options):
    learnt = {name: value.clone().requires_grad_() for name, value in learnt.items()}
    rounded, *_ = data_type.quant_tensor(weight, **learnt, **options)
    return rounded, torch.autograd.grad(
        (rounded * torch.arange(rounded.numel()).view_as(rounded)).sum(), [*learnt.values()]
    )


@EACH
def test_the_weight_gets_its_gradient_straight_through(data_type):
    weight = torch.tensor([[-4.0, -1.0, 0.0, 1.0, 2.0, 3.9, 0.3, 0.1]], requires_grad=True)
    rounded, *_ = data_type.quant_tensor(weight, 3, -1, max_scale=torch.tensor([0.5]), min_scale=torch.tensor([0.5]))
    (found,) = torch.autograd.grad(rounded.sum(), weight)
    assert found.tolist() == [[0, 1, 1, 1, 0, 0, 1, 1]]  # the grid ends at about -2 and 1.6


@EACH
def test_gradients_with_a_given_range(data_type):
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    groups = weight.view(8, 32)
    given = {"tensor_min": groups.amin(-1).clamp(max=0), "tensor_max": groups.amax(-1).clamp(min=0)}
    learnt = {"v": torch.full((8, 32), 0.1), "min_scale": torch.full((8,), 0.7), "max_scale": torch.full((8,), 0.8)}
    own, by_own = differentiate(data_type, weight, learnt, bits=3, group_size=32)
    told, by_told = differentiate(data_type, weight, learnt, bits=3, group_size=32, **given)
    assert torch.equal(own, told)
    assert all(torch.equal(a, b) for a, b in zip(by_own, by_told, strict=True))
    one = {"max_scale": torch.tensor(0.8)}  # one factor for all groups
    _, (summed,) = differentiate(data_type, weight, one, bits=3, group_size=32)
    many = {"max_scale": torch.full((8, 1), 0.8)}
    _, (apart,) = differentiate(data_type, weight, many, bits=3, group_size=32)
    assert apart.shape == (8, 1)
    torch.testing.assert_close(summed, apart.sum())


def test_a_searched_scale_is_what_max_scale_multiplies():
    weight = torch.randn(2, 32, generator=torch.Generator().manual_seed(2))
    start = torch.tensor([[0.25], [-0.5]])
    learnt = {"max_scale": torch.tensor([0.5, 1.5]), "min_scale": torch.ones(2)}
    rounded, (by_max, by_min) = differentiate(IntSym(), weight, learnt, bits=4, group_size=32, init_scale=start)
    scale = torch.tensor([[0.125], [-0.75]], requires_grad=True)
    ratio = weight / scale
    codes = (ratio + (ratio.round() - ratio).detach()).clamp(-8, 7)
    assert torch.equal(rounded, (scale * codes).detach())
    (by_scale,) = torch.autograd.grad((scale * codes * torch.arange(64).view(2, 32)).sum(), scale)
    # Both are sums over 32 terms that cancel in part, taken in another order.
    torch.testing.assert_close(by_max, (by_scale * start).flatten(), rtol=2e-5, atol=0)
    assert by_min.tolist() == [0, 0]


@EACH
def test_what_cannot_be_is_refused(data_type):
    assert data_type.supports(scheme_of(data_type), (7, 5)) is None
    assert "2 to 8 bits, not 1" in data_type.supports(scheme_of(data_type, 1), (8, 8))
    assert "not blocks of (8, 8)" in data_type.supports(scheme_of(data_type, 4, (8, 8)), (8, 8))
    with pytest.raises(SchemeError, match="2 to 8 bits, not 9"):
        data_type.quant_tensor(torch.ones(1, 32), 9, 32)
    with pytest.raises(SchemeError, match="blocks"):
        data_type.quant_tensor(torch.ones(1, 32), 4, (8, 8))
    with pytest.raises(TypeError, match="'maxscale'"):
        data_type.encode(torch.ones(1, 32), scheme_of(data_type), maxscale=1.0)


@pytest.mark.parametrize("data_type", [IntSym(), IntSymGptq()], ids=lambda d: d.name)
def test_what_is_symmetric_is_not_taken_for_something_else(data_type):
    scheme = QuantizationScheme(4, 32, sym=False, data_type=data_type.name)
    assert "int_asym" in data_type.supports(scheme, (8, 64))
    assert data_type.supports(scheme.replace(sym=True), (8, 64)) is None


@EACH
def test_activations_of_any_rank_are_rounded_row_by_row(data_type):
    hidden = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(3))
    rounded, scale, _ = data_type.quant_tensor(hidden, 8, -1)
    assert rounded.shape == hidden.shape
    assert scale.shape == (6, 1)


def test_costs_count_scales_and_zero_points():
    assert IntSym().bits_per_weight(scheme_of(IntSym(), 4, 128), (256, 256)) == 4 + 20 / 128
    assert IntAsym().bits_per_weight(scheme_of(IntAsym(), 2, -1), (256, 256)) == 2 + 18 / 256
    assert IntAsym().bits_per_weight(scheme_of(IntAsym(), 3, 128), (1, 160)) == 3 + 2 * 19 / 160
    assert IntSym().statistics(scheme_of(IntSym(), 7)) == {"imatrix"}
    assert not IntSym().statistics(scheme_of(IntSym(), 8))
    assert IntSym().describe()["name"] == "int_sym"
