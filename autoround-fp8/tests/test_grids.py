# SPDX-License-Identifier: Apache-2.0
"""Every data type: what is stored is what was tuned, at every shape and grouping; edges; gradients not recorded."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from auto_round import QuantizationScheme
from auto_round.data_type.grouping import group_count, group_shape, reshape_pad_tensor_by_group_size
from auto_round.errors import CalibrationError, SchemeError
from auto_round_fp8 import float8
from auto_round_fp8.elements import E4M3, E5M2, steps_at
from auto_round_fp8.hybrid import FP8_TO_INT_SYM
from auto_round_fp8.scales import frozen_scale

SCALED = [float8.FP8, float8.FP8_E5M2, float8.FP8_E4M3FNUZ, float8.BLOCK_FP8]
EVERY = [*SCALED, float8.FP8_UNIT_SCALE, float8.FP8_E5M2_UNIT_SCALE, float8.FP8_DYNAMIC, FP8_TO_INT_SYM]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SIZES = (-1, 0, 16, 32, 64, (4, 8), (128, 128), (5, 7))


def groups_fit(data_type, group_size):
    if isinstance(data_type, float8.Float8Block):
        return isinstance(group_size, tuple)
    if isinstance(data_type, float8.Float8Dynamic):
        return group_size == -1
    return not isinstance(group_size, tuple) or data_type is not FP8_TO_INT_SYM


def bits_of(data_type):
    return 4 if data_type is FP8_TO_INT_SYM else 8


def scheme_of(data_type, group_size):
    return QuantizationScheme(bits=bits_of(data_type), group_size=group_size, data_type=data_type.name)


def offered(data_type, **offers):
    return {name: value for name, value in offers.items() if name in data_type.offers}


def same_bits(one, other):
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return one.dtype == other.dtype and torch.equal(one.view(integer), other.view(integer))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    data_type=st.sampled_from(EVERY),
    rows=st.integers(1, 9),
    cols=st.integers(1, 100),
    group_size=st.sampled_from(SIZES),
    dtype=st.sampled_from(DTYPES),
    scale_dtype=st.sampled_from(DTYPES[:3]),
    learnt=st.booleans(),
    searched=st.booleans(),
    size=st.sampled_from([1e-7, 1.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_codes_decode_to_what_was_tuned(
    data_type, rows, cols, group_size, dtype, scale_dtype, learnt, searched, size, seed
):
    if not groups_fit(data_type, group_size):
        return
    draw = torch.Generator().manual_seed(seed)
    weight = (torch.randn(rows, cols, generator=draw) * size).to(dtype)
    count, scheme = group_count((rows, cols), group_size), scheme_of(data_type, group_size)
    offers = {"scale_dtype": scale_dtype}
    if learnt:
        offers["v"] = torch.rand(group_shape((rows, cols), group_size), generator=draw) - 0.5
        offers["min_scale"] = torch.rand(count, generator=draw) * 2
        offers["max_scale"] = torch.rand(count, generator=draw) * 2
    offers = offered(data_type, **offers)
    if searched and data_type.searches:
        offers |= data_type.search(weight, scheme, imatrix=None, scale_dtype=scale_dtype)
    identity = offered(data_type, bits=scheme.bits, group_size=group_size)
    rounded, *_ = data_type.quant_tensor(weight, **identity, **offers)
    codes = data_type.encode(weight, scheme, **offers)
    assert same_bits(data_type.decode(codes), rounded)
    assert rounded.shape == weight.shape
    assert rounded.is_contiguous()
    assert codes.tensors["codes"].shape == weight.shape
    assert torch.isfinite(rounded).all()
    if "scale" in codes.tensors:
        assert codes.tensors["scale"].numel() == torch.Size(count).numel()
        assert codes.tensors["scale"].dtype == (torch.bfloat16 if data_type is FP8_TO_INT_SYM else scale_dtype)


@pytest.mark.parametrize("data_type", EVERY, ids=lambda d: d.name)
@pytest.mark.parametrize("group_size", [-1, 0, 32, (16, 32)])
def test_large_weights_are_worked_on_in_pieces_that_join(data_type, group_size, monkeypatch):
    if not groups_fit(data_type, group_size):
        return
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
    names = [name for name in ("v", "max_scale") if name in data_type.offers]
    scheme = scheme_of(data_type, group_size)

    def everything():
        start = {
            "v": torch.zeros(group_shape((48, 64), group_size)),
            "max_scale": torch.ones(group_count((48, 64), group_size)),
        }
        learnt = {name: start[name].requires_grad_() for name in names}
        rounded, *_ = data_type.quant_tensor(
            weight, **offered(data_type, bits=scheme.bits, group_size=group_size), **learnt
        )
        gradients = torch.autograd.grad(rounded.pow(3).sum(), list(learnt.values()))
        codes = data_type.encode(weight, scheme)
        return rounded.detach(), gradients, codes.tensors["codes"].float(), data_type.decode(codes)

    whole = everything()
    monkeypatch.setattr("auto_round_fp8.tiles.CHUNK", 200)
    pieces = everything()
    for one, other in zip(whole, pieces, strict=True):
        if isinstance(one, tuple):
            assert torch.equal(one[0], other[0])
            # The gradient of one scale for the whole tensor is a sum over pieces, in another order.
            assert all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(one[1:], other[1:], strict=True))
        else:
            assert torch.equal(one, other)


@pytest.mark.parametrize("data_type", EVERY, ids=lambda d: d.name)
@pytest.mark.parametrize(
    "row",
    [[0.0] * 32, [0.25] * 32, [-0.25] * 32, [1e-7] * 32, [1e4] * 32, [3e38] + [1.0] * 31, [1e-30] * 32, [-0.0] * 32],
)
def test_degenerate_groups_stay_finite(data_type, row):
    group_size = (1, 32) if isinstance(data_type, float8.Float8Block) else -1
    weight = torch.tensor([row])
    rounded, *_ = data_type.quant_tensor(weight, **offered(data_type, bits=bits_of(data_type), group_size=group_size))
    assert torch.isfinite(rounded).all()
    if weight.abs().max() == 0:
        assert torch.equal(rounded, torch.zeros_like(weight))
        assert not rounded.signbit().any()  # e4m3fnuz has no -0: its bytes mean NaN


def test_the_largest_weight_is_held_to_rounding():
    weight = torch.tensor([[1.0, -0.5, 0.25, 0.0], [-3.0, 0.5, 0.25, 0.0]])
    rounded, scale, _ = float8.FP8.quant_tensor(weight)
    assert torch.equal(scale.flatten(), torch.tensor([1.0, 3.0]) / 448)
    assert torch.equal(rounded[:, 0], scale.flatten() * torch.tensor([448.0, -448.0]))


def test_a_given_range_is_the_range_of_each_group():
    weight = torch.randn(6, 100, generator=torch.Generator().manual_seed(1))
    for data_type, group_size in ((float8.FP8, 32), (float8.FP8, 0), (float8.BLOCK_FP8, (4, 16)), (FP8_TO_INT_SYM, 32)):
        groups, *_ = reshape_pad_tensor_by_group_size(weight, group_size)
        dims = (-2, -1) if isinstance(group_size, tuple) else (-1,)
        known = {"tensor_min": groups.amin(dims).clamp(max=0), "tensor_max": groups.amax(dims).clamp(min=0)}
        own, *_ = data_type.quant_tensor(weight, bits_of(data_type), group_size)
        told, *_ = data_type.quant_tensor(weight, bits_of(data_type), group_size, **known)
        assert torch.equal(own, told)


def test_the_input_gets_its_gradient_straight_through():
    """As activations need it: where the grid was left there is no gradient, elsewhere it passes."""
    x = torch.tensor([[-6.0, -4.48, -1.0, 0.0, 1.0, 4.48, 4.5]], requires_grad=True)
    rounded, *_ = float8.FP8.quant_tensor(x, group_size=0, init_scale=torch.tensor([0.01]))
    (found,) = torch.autograd.grad((rounded * torch.arange(1.0, 8.0)).sum(), x)
    assert found.tolist() == [[0, 2, 3, 4, 5, 6, 0]]
    x = torch.tensor([[-9.0, -8.0, 0.0, 7.0, 7.8]], requires_grad=True)
    rounded, *_ = FP8_TO_INT_SYM.quant_tensor(x, 4, -1, init_scale=torch.tensor([[49.0]]))  # 448 / 9 is one
    (found,) = torch.autograd.grad(rounded.sum(), x)
    assert found.tolist() == [[0, 1, 1, 1, 0]]


def written_out_in_steps(weight, v, max_scale, start):
    """From a searched scale: the definition, an operation at a time, differentiated by autograd."""
    scale = start * max_scale.unsqueeze(-1)
    position = weight / scale
    position = position + v * steps_at(position.detach(), E4M3)
    inside = position.clamp(-448, 448)
    return (inside + (inside.to(torch.float8_e4m3fn).float() - inside).detach()) * scale


def test_from_a_searched_scale_the_offset_counts_in_steps():
    draw = torch.Generator().manual_seed(2)
    weight = torch.randn(8, 64, generator=draw)
    start = torch.rand(8, 1, generator=draw) * 0.02 + 0.001
    learnt = [torch.rand(8, 64, generator=draw) - 0.5, torch.rand(8, generator=draw) + 0.5]
    results = []
    for function in (
        lambda v, c: float8.FP8.quant_tensor(weight, group_size=-1, v=v, max_scale=c, init_scale=start)[0],
        lambda v, c: written_out_in_steps(weight, v, c, start),
    ):
        given = [t.clone().requires_grad_() for t in learnt]
        rounded = function(*given)
        results.append((rounded, *torch.autograd.grad((rounded * weight.cos()).sum(), given)))
    (ours, by_v, by_factor), (theirs, v_theirs, factor_theirs) = results
    assert torch.equal(ours, theirs)
    # Autograd multiplies step, scale and gradient in another order: two roundings of float32.
    torch.testing.assert_close(by_v, v_theirs, rtol=2**-22, atol=0)
    torch.testing.assert_close(by_factor, factor_theirs, rtol=1e-4, atol=1e-6)  # a sum whose terms cancel in part
    half = torch.full((8, 64), 0.49)
    up, *_ = float8.FP8.quant_tensor(weight, group_size=-1, v=half, init_scale=start)
    plain, *_ = float8.FP8.quant_tensor(weight, group_size=-1, init_scale=start)
    moved = (up > plain).float().mean(-1)
    inside = weight.abs().amax(-1) < 440 * start.flatten()
    assert inside.any()
    assert (moved[inside] > 0.3).all()  # about half of the weights of every size, not the small ones alone


def test_scales_follow_their_factor_only_while_nothing_holds_them():
    weight = torch.full((2, 8), 1e-9)
    weight[1] = 1.0
    factor = torch.ones(2, requires_grad=True)
    rounded, *_ = float8.FP8.quant_tensor(weight, max_scale=factor, v=torch.full((2, 8), 100.0))
    (found,) = torch.autograd.grad(rounded.sum(), factor)
    assert found[0] == 0  # the least scale stays whatever the factor
    assert found[1] != 0


@pytest.mark.parametrize("data_type", [float8.FP8, FP8_TO_INT_SYM], ids=lambda d: d.name)
def test_the_gradient_that_comes_in_stays_as_it_is(data_type):
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    factor, v = torch.ones(4, requires_grad=True), torch.zeros(4, 32, requires_grad=True)
    rounded, *_ = data_type.quant_tensor(weight, bits_of(data_type), -1, v=v, max_scale=factor)
    incoming = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    kept = incoming.clone()
    rounded.backward(incoming)
    assert torch.equal(incoming, kept)


class TestStaticActivations:
    scheme = QuantizationScheme(bits=8, group_size=-1, data_type="fp", act_bits=8, act_group_size=0, act_dynamic=False)

    def freeze(self, low, high):
        return float8.FP8.freeze(torch.tensor(low), torch.tensor(high), self.scheme.resolved())

    def test_the_frozen_scale_is_the_one_that_is_used(self):
        """The known implementation computes it anew from each input (autoround-facts S1)."""
        frozen = self.freeze(-2.0, 7.0)
        x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
        rounded, scale, _ = float8.FP8.quant_tensor(x, 8, 0, **frozen)
        assert torch.equal(scale.flatten(), frozen["init_scale"])
        assert scale.item() != x.abs().max().item() / 448
        assert rounded.shape == x.shape
        beyond, *_ = float8.FP8.quant_tensor(torch.tensor([[100.0, -100.0]]), 8, 0, **frozen)
        assert torch.equal(beyond.abs(), 448 * scale.expand(1, 2))

    def test_it_holds_what_was_seen_and_is_the_same_in_every_dtype(self):
        for low, high in ((-3.0, 1.0), (0.0, 0.7), (-1e-3, 2e-3), (-900.0, 1e4)):
            (scale,) = self.freeze(low, high).values()
            assert scale.dtype == torch.float32
            assert torch.equal(scale.bfloat16().float(), scale)
            assert max(-low, high) <= 448 * scale <= max(-low, high) * (1 + 2**-7)

    def test_a_layer_that_saw_nothing_has_a_scale_of_one(self):
        assert self.freeze(0.0, 0.0)["init_scale"].tolist() == [1.0]

    def test_the_next_bfloat16_above(self):
        exact = torch.tensor(57344.0 * (1 + 2**-7 + 2**-20))
        assert frozen_scale(-exact, torch.tensor(0.0), E5M2).item() == 1 + 2**-6
        assert frozen_scale(torch.tensor(0.0), torch.tensor(57344.0), E5M2).item() == 1

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_inputs_that_are_no_numbers_are_refused(self, value):
        for low, high in ((0.0, value), (-value, 1.0)):
            with pytest.raises(CalibrationError, match="NaN or infinite"):
                self.freeze(low, high)

    def test_scales_per_token_cannot_be_frozen(self):
        with pytest.raises(SchemeError, match="act_data_type=fp8"):
            float8.FP8_DYNAMIC.freeze(torch.tensor(-1.0), torch.tensor(1.0), self.scheme)


def test_activations_per_token_and_per_group():
    x = torch.randn(3, 4, 48, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 5).view(1, 4, 1)
    for data_type, group_size in ((float8.FP8_DYNAMIC, -1), (float8.FP8, -1), (float8.FP8, 16), (float8.FP8, 100)):
        rounded, scale, _ = data_type.quant_tensor(x, **offered(data_type, group_size=group_size))
        width = 16 if group_size == 16 else 48
        groups = x.reshape(-1, width)
        assert torch.equal(scale, groups.abs().amax(-1, keepdim=True) / 448)
        by_hand = (groups / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
        assert torch.equal(rounded, by_hand.view_as(x))


def test_what_cannot_be_is_said():
    with pytest.raises(SchemeError, match="8 bits"):
        float8.FP8.quant_tensor(torch.ones(2, 2), 4)
    with pytest.raises(SchemeError, match="2 to 8 bits"):
        FP8_TO_INT_SYM.quant_tensor(torch.ones(2, 2), 16)
    with pytest.raises(SchemeError, match="blocks"):
        FP8_TO_INT_SYM.quant_tensor(torch.ones(2, 2), 4, (2, 2))
    with pytest.raises(TypeError, match="min_scale"):
        float8.FP8.encode(torch.ones(2, 2), scheme_of(float8.FP8, -1), min_scale=1.0)
    rows = scheme_of(float8.FP8, -1)
    assert "8 bits" in float8.FP8.supports(rows.replace(bits=4), (8, 8))
    assert "symmetric" in float8.FP8.supports(rows.replace(sym=False), (8, 8))
    assert "blocks" in float8.BLOCK_FP8.supports(rows, (8, 8))
    assert "row" in float8.FP8_DYNAMIC.supports(rows.replace(group_size=32), (8, 8))
    assert "along a row" in FP8_TO_INT_SYM.supports(rows.replace(bits=4, group_size=(2, 2)), (8, 8))
    assert all(d.supports(scheme_of(d, (8, 8) if d is float8.BLOCK_FP8 else -1), (8, 8)) is None for d in EVERY)


@pytest.mark.parametrize("data_type", EVERY, ids=lambda d: d.name)
def test_cost_and_card(data_type):
    group_size = (128, 128) if isinstance(data_type, float8.Float8Block) else -1
    cost = data_type.bits_per_weight(scheme_of(data_type, group_size), (256, 512))
    assert bits_of(data_type) <= cost < bits_of(data_type) + 0.1
    card = data_type.describe()
    assert {"name", "summary", "grid", "stored"} <= card.keys()
