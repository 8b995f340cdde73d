# SPDX-License-Identifier: Apache-2.0
"""The searched scales: never worse than the plain ones, group by group; close to what trying many scales finds."""

import pytest
import torch

from auto_round import QuantizationScheme
from auto_round.data_type.grouping import reshape_pad_tensor_by_group_size
from auto_round_fp8 import float8
from auto_round_fp8.hybrid import FP8_TO_INT_SYM

CASES = [
    (float8.FP8, 0),
    (float8.FP8, -1),
    (float8.FP8, 32),
    (float8.FP8, 48),
    (float8.FP8_E5M2, -1),
    (float8.FP8_E4M3FNUZ, 32),
    (float8.BLOCK_FP8, (16, 32)),
    (float8.BLOCK_FP8, (7, 48)),
    (FP8_TO_INT_SYM, 32),
    (FP8_TO_INT_SYM, 0),
]
EACH = pytest.mark.parametrize(("data_type", "group_size"), CASES, ids=lambda c: getattr(c, "name", str(c)))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def bits_of(data_type):
    return 4 if data_type is FP8_TO_INT_SYM else 8


def search(data_type, group_size, weight, imatrix, scale_dtype=torch.float32):
    scheme = QuantizationScheme(bits=bits_of(data_type), group_size=group_size, data_type=data_type.name)
    return data_type.search(weight, scheme, imatrix=imatrix, scale_dtype=scale_dtype)


def error(data_type, group_size, weight, imatrix, **offers):
    """Weighted squared error of each group of the weight as it would be loaded, float64."""
    offers = {name: value for name, value in offers.items() if name in data_type.offers}
    rounded, *_ = data_type.quant_tensor(weight, bits_of(data_type), group_size, **offers)
    even = torch.ones(weight.shape[1]) if imatrix is None else imatrix
    weighted = (rounded.double() - weight.double()).square() * even.double()
    groups, *_ = reshape_pad_tensor_by_group_size(weighted, group_size)
    return groups.sum((-2, -1) if isinstance(group_size, tuple) else -1)


def example(kind, dtype=torch.float32):
    draw = torch.Generator().manual_seed(7)
    weight = torch.randn(24, 96 + 10, generator=draw) * 0.05
    if kind == "outliers":
        weight[:, ::13] *= 30
    if kind == "degenerate":
        weight[0], weight[1], weight[2], weight[3, 5:] = 0.0, 1e-9, 0.25, 0.0
    return weight.to(dtype), torch.rand(106, generator=draw).pow(4)


@EACH
@pytest.mark.parametrize("kind", ["plain", "outliers", "degenerate"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_never_worse_than_the_plain_scale(data_type, group_size, kind, dtype):
    weight, imatrix = example(kind, dtype)
    for importance, scale_dtype in ((imatrix, dtype), (None, torch.float32)):
        found = search(data_type, group_size, weight, importance, scale_dtype)
        plain = error(data_type, group_size, weight, importance, scale_dtype=scale_dtype)
        after = error(data_type, group_size, weight, importance, scale_dtype=scale_dtype, **found)
        assert (after <= plain).all()


@EACH
def test_it_gains(data_type, group_size):
    weight, imatrix = example("outliers")
    found = search(data_type, group_size, weight, imatrix)
    before, after = (error(data_type, group_size, weight, imatrix, **offers).sum() for offers in ({}, found))
    assert after < (0.99 if group_size == 0 else 0.9) * before


@EACH
def test_close_to_what_trying_many_scales_finds(data_type, group_size):
    """Two hundred scales over two octaves of either sign, no least squares: at most a few parts in a hundred better."""
    weight, imatrix = example("plain")
    found = search(data_type, group_size, weight, imatrix)
    _, scale, _ = data_type.quant_tensor(weight, bits_of(data_type), group_size)
    plain = scale["scale"].float() / scale["bf16_to_fp8_scale"] if isinstance(scale, dict) else scale
    least = None
    for i in range(-100, 300, 2):
        for sign in (1, -1) if data_type is FP8_TO_INT_SYM else (1,):
            tried = {
                "init_scale": plain * sign * 2.0 ** (i / 150 if data_type is not FP8_TO_INT_SYM else (i - 100) / 200)
            }
            got = error(data_type, group_size, weight, imatrix, **tried)
            least = got if least is None else torch.minimum(least, got)
    ours = error(data_type, group_size, weight, imatrix, **found)
    assert ours.sum() <= 1.03 * least.sum()
    assert (ours <= 1.5 * least).all()


@EACH
@pytest.mark.parametrize("scale_dtype", DTYPES[:2])
def test_what_is_found_is_what_is_stored(data_type, group_size, scale_dtype):
    weight, imatrix = example("outliers", torch.bfloat16)
    found = search(data_type, group_size, weight, imatrix, scale_dtype)
    scheme = QuantizationScheme(bits=bits_of(data_type), group_size=group_size, data_type=data_type.name)
    offers = {name: value for name, value in {"scale_dtype": scale_dtype, **found}.items() if name in data_type.offers}
    codes = data_type.encode(weight, scheme, **offers)
    assert torch.equal(codes.tensors["scale"].float().flatten(), found["init_scale"].flatten())
    assert found["init_scale"].dtype == torch.float32


@EACH
def test_pieces_join(data_type, group_size, monkeypatch):
    weight, imatrix = example("plain")
    whole = search(data_type, group_size, weight, imatrix)["init_scale"]
    monkeypatch.setattr("auto_round_fp8.tiles.CHUNK", 200)
    pieces = search(data_type, group_size, weight, imatrix)["init_scale"]
    if group_size == 0:  # sums over pieces, in another order
        torch.testing.assert_close(whole, pieces, rtol=1e-5, atol=0)
    else:
        assert torch.equal(whole, pieces)


def test_groups_without_importance_count_evenly():
    weight, imatrix = example("plain")
    weight, imatrix = weight[:, :96], imatrix[:96].clone()
    imatrix[:32] = 0.0
    uneven = search(float8.FP8, 32, weight, imatrix)["init_scale"].view(24, 3)
    even = search(float8.FP8, 32, weight, None)["init_scale"].view(24, 3)
    assert torch.equal(uneven[:, 0], even[:, 0])
    assert not torch.equal(uneven[:, 1:], even[:, 1:])
