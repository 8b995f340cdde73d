# SPDX-License-Identifier: Apache-2.0
"""What is stored is what was tuned, at every shape and dtype; edges; scales that layers share or that are frozen."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from auto_round import QuantizationScheme
from auto_round.data_type.grouping import group_count, group_shape
from auto_round.errors import SchemeError
from auto_round_nvfp.nvfp import NvFp4, NvFp4StaticGlobalScale, NvFp4V2, NvFp4V2GlobalScale

WEIGHTS = [NvFp4(), NvFp4V2(), NvFp4V2GlobalScale()]
ALL = pytest.mark.parametrize("data_type", WEIGHTS, ids=lambda d: d.name)
TWO_LEVELS = [NvFp4(), NvFp4V2GlobalScale(), NvFp4StaticGlobalScale()]


def scheme_of(data_type, group_size=16):
    return QuantizationScheme(bits=4, group_size=group_size, data_type=data_type.name)


def same_bits(one, other):
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return one.dtype == other.dtype and torch.equal(one.view(integer), other.view(integer))


@pytest.mark.parametrize("data_type", [*WEIGHTS, NvFp4StaticGlobalScale()], ids=lambda d: d.name)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    cols=st.integers(1, 100),
    group_size=st.sampled_from([-1, 0, 16, 32]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    offered=st.sets(st.sampled_from(["v", "max_scale", "init_scale", "global_scale", "range"])),
    size=st.sampled_from([1e-7, 1.0, 1e3]),
    seed=st.integers(0, 99),
)
def test_codes_decode_to_what_was_tuned(data_type, rows, cols, group_size, dtype, offered, size, seed):
    draw = torch.Generator().manual_seed(seed)
    weight = (torch.randn(rows, cols, generator=draw) * size).to(dtype)
    count = group_count((rows, cols), group_size)
    drawn = {
        "v": torch.rand(group_shape((rows, cols), group_size), generator=draw) - 0.5,
        "max_scale": torch.rand(count, generator=draw) * 2,
        "init_scale": torch.rand((*count, 1), generator=draw) * 500,
        "global_scale": 100 / weight.float().abs().max().clamp(min=1e-9),
    }
    offers = {name: value for name, value in drawn.items() if name in offered & data_type.offers}
    if "range" in offered:
        offers |= {"tensor_min": torch.rand(count, generator=draw) * -size}
        offers |= {"tensor_max": torch.rand(count, generator=draw) * size}
    rounded, scale, _ = data_type.quant_tensor(weight, group_size=group_size, **offers)
    codes = data_type.encode(weight, scheme_of(data_type, group_size), **offers)
    assert same_bits(data_type.decode(codes), rounded)
    assert rounded.shape == weight.shape
    assert codes.tensors["codes"].shape == weight.shape
    assert codes.tensors["codes"].max() < 16
    assert torch.equal(data_type.block_scale.format.load(codes.tensors["scale"]).reshape(-1, 1), scale)
    assert torch.isfinite(rounded).all()
    two_levels = data_type.block_scale.two_levels
    assert ("global_scale" in codes.tensors) == two_levels
    if two_levels and "global_scale" in offers:
        assert codes.tensors["global_scale"].tolist() == [offers["global_scale"].item()]


@ALL
def test_large_weights_are_worked_on_in_pieces_that_join(data_type, normal, monkeypatch):
    weight, v, c = normal(24, 64), torch.zeros(96, 16, requires_grad=True), torch.full((96,), 0.7, requires_grad=True)

    def run():
        rounded, *_ = data_type.quant_tensor(weight, v=v, max_scale=c)
        codes = data_type.encode(weight, scheme_of(data_type), max_scale=c.detach())
        return [rounded, *torch.autograd.grad(rounded.square().sum(), [v, c]), data_type.decode(codes)]

    whole = run()
    monkeypatch.setattr("auto_round_nvfp.blocks.CHUNK", 200)
    for piece, expected in zip(run(), whole, strict=True):
        assert torch.equal(piece, expected)


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "row", [[0.0] * 32, [0.25] * 32, [1e-7] * 32, [3e38] + [1.0] * 31, [-1e6, 1e6] * 16, [1e-30] * 32, [1e-38] * 32]
)
def test_degenerate_blocks_stay_finite(data_type, dtype, row):
    weight = torch.tensor([row], dtype=dtype)
    c = torch.ones(2, requires_grad=True)
    rounded, scale, _ = data_type.quant_tensor(weight, max_scale=c)
    rounded.float().sum().backward()
    for tensor in (rounded, scale, c.grad):
        assert torch.isfinite(tensor).all()
    codes = data_type.encode(weight, scheme_of(data_type))
    assert torch.equal(data_type.decode(codes), rounded)
    if not any(row):
        assert codes.tensors["codes"].eq(0).all()
        assert codes.tensors["scale"].view(torch.uint8).eq(0).all()
        # Runtimes divide by it, so that zero, or an infinity, would decode to no number at all.
        assert codes.tensors.get("global_scale", torch.ones(1)).item() == 1.0


@ALL
def test_a_block_of_zeros_beside_others_is_zeros(data_type, normal):
    weight = normal(4, 64)
    weight[1, 16:32] = 0.0
    v = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    rounded, scale, _ = data_type.quant_tensor(weight, v=v)
    assert (rounded[1, 16:32] == 0).all()
    assert scale[5] == 0
    assert (scale > 0).sum() == 15


def test_elements_by_hand():
    weight = torch.tensor([[6.0, -3.0, 2.5, 0.25, 0.75, -5.0, 1.75, 0.0] * 2])
    codes = NvFp4().encode(weight, scheme_of(NvFp4()))
    assert codes.tensors["codes"][0, :8].tolist() == [7, 13, 4, 0, 2, 14, 4, 0]  # 6 -3 2 0 1 -4 2 0, ties to even
    assert codes.tensors["scale"].float().tolist() == [[448.0]]
    assert codes.tensors["global_scale"].tolist() == [448.0]
    codes = NvFp4V2().encode(weight, scheme_of(NvFp4V2()))
    assert codes.tensors["scale"].tolist() == [[120]]  # 1.0


def test_a_searched_scale_is_what_max_scale_multiplies(normal):
    weight, probe = normal(2, 32), normal(2, 32, seed=1)
    start, size = torch.tensor([[64.0], [26.0], [52.0], [448.0]]), torch.tensor(300.0)
    c = torch.tensor([0.5, 1.0, 1.5, 1.1], requires_grad=True)
    rounded, scale, _ = NvFp4().quant_tensor(weight, max_scale=c, init_scale=start, global_scale=size)
    assert scale.flatten().tolist() == [32.0, 26.0, 80.0, 448.0]  # 78 lies between 72 and 80; the last is saturated
    (found,) = torch.autograd.grad((rounded * probe).sum(), c)
    step = (scale / size).requires_grad_()
    x = (weight.view(4, 16) / step).clamp(-6, 6)
    q = rounded.detach().view(4, 16) / step.detach()
    (by_step,) = torch.autograd.grad(((x + (q - x).detach()) * step * probe.view(4, 16)).sum(), step)
    wanted = (by_step * start / size).flatten()
    torch.testing.assert_close(found[:3], wanted[:3], rtol=1e-5, atol=1e-6)  # float32 sums of 16 terms
    assert found[3] == 0


def test_fused_layers_share_the_scale_of_the_largest(normal):
    weights = [normal(8, 32) * size for size in (1.0, 3.0, 0.01)]
    for data_type in TWO_LEVELS:
        shared = data_type.share(weights, scheme_of(data_type))
        own = [data_type.share([weight], scheme_of(data_type))["global_scale"] for weight in weights]
        assert shared["global_scale"] == min(own)
        assert shared["global_scale"].shape == ()
        end = data_type.block_scale.format.largest
        assert shared["global_scale"] == end * 6 / max(weight.abs().max() for weight in weights)
        for weight in weights:
            codes = data_type.encode(weight, scheme_of(data_type), **shared)
            assert codes.tensors["global_scale"].tolist() == [shared["global_scale"].item()]
            assert data_type.block_scale.format.load(codes.tensors["scale"]).max() <= end
            # Each layer's copy is its own: files do not keep tensors that share storage.
            assert codes.tensors["global_scale"].data_ptr() != shared["global_scale"].data_ptr()
    assert NvFp4V2().share(weights, scheme_of(NvFp4V2())) == {}


def test_sharing_costs_little(normal):
    """A foreign scale of the tensor only moves block scales within E4M3, whose steps are the same over its range."""
    weight = normal(64, 64)
    for smaller in (1.0, 0.3, 0.01):
        rounded, *_ = NvFp4().quant_tensor(weight, global_scale=torch.tensor(2688.0 / 4 * smaller))
        error = ((rounded - weight).square().mean() / weight.square().mean()).item()
        assert error < 0.012


def test_activations_are_frozen_to_their_range(normal):
    data_type = NvFp4StaticGlobalScale()
    x = normal(4, 3, 64)
    low, high = x.amin(), x.amax() * 1.7  # not a power of two, which would change nothing
    frozen = data_type.freeze(low, high, scheme_of(data_type))
    assert frozen["global_scale"] == 2688 / torch.maximum(-low, high)
    by_scale = data_type.quant_tensor(x, 16, **frozen)[0]
    by_range = data_type.quant_tensor(x, 16, tensor_min=low, tensor_max=high)[0]
    assert torch.equal(by_scale, by_range)
    assert not torch.equal(by_scale, data_type.quant_tensor(x, 16)[0])
    token = data_type.quant_tensor(x[1:2], 16, **frozen)[0]
    assert torch.equal(token, by_scale[1:2])  # what a token becomes does not depend on its batch
    nothing = data_type.freeze(torch.tensor(0.0), torch.tensor(0.0), scheme_of(data_type))
    assert nothing["global_scale"].tolist() == [1.0]
    assert NvFp4V2().freeze(low, high, scheme_of(NvFp4V2())) == {}


def test_what_does_not_fit_is_said():
    scheme = scheme_of(NvFp4())
    assert NvFp4().supports(scheme, (8, 32)) is None
    assert "not a multiple" in NvFp4().supports(scheme, (8, 40))
    assert "blocks of 16 inputs, not 32" in NvFp4().supports(scheme.replace(group_size=32), (8, 64))
    assert "has 4 bits, not 8" in NvFp4().supports(scheme.replace(bits=8), (8, 64))
    assert "symmetric" in NvFp4().supports(scheme.replace(sym=False), (8, 64))
    assert NvFp4V2().supports(scheme.replace(group_size=32), (8, 64)) is None
    with pytest.raises(SchemeError, match="of one row"):
        NvFp4().quant_tensor(torch.ones(8, 8), (4, 4))
    with pytest.raises(TypeError, match="'min_scale'"):
        NvFp4().encode(torch.ones(8, 16), scheme, min_scale=1.0)


def test_bits_of_a_weight_are_those_of_its_codes(normal):
    for data_type in WEIGHTS:
        scheme, shape = scheme_of(data_type), (32, 64)
        codes = data_type.encode(normal(*shape), scheme)
        unpacked = codes.tensors["codes"].nbytes / 2  # two codes a byte
        others = sum(t.nbytes for name, t in codes.tensors.items() if name != "codes")
        assert data_type.bits_per_weight(scheme, shape) == 8 * (unpacked + others) / (32 * 64)
        assert data_type.describe()["scale"].startswith("one for each block")
