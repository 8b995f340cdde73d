# SPDX-License-Identifier: Apache-2.0
"""The searched scales: never worse than plain rounding, at least as good as the recorded search, group by group."""

import pytest
import torch

from auto_round import QuantizationScheme
from auto_round.data_type.grouping import reshape_pad_tensor_by_group_size, revert_tensor_by_pad
from auto_round_int.asymmetric import IntAsym
from auto_round_int.restricted import IntSymGptq
from auto_round_int.search import LOUDNESS
from auto_round_int.symmetric import IntSym

EACH = pytest.mark.parametrize("data_type", [IntSym(), IntAsym(), IntSymGptq()], ids=lambda d: d.name)


def grouped(tensor, case):
    return reshape_pad_tensor_by_group_size(tensor, case["group_size"])[0]


def padding(weight, case):
    return reshape_pad_tensor_by_group_size(weight, case["group_size"])[1:]


def search(data_type, weight, case, imatrix, scale_dtype):
    scheme = QuantizationScheme(sym=data_type.name != "int_asym", data_type=data_type.name, **case)
    return data_type.search(weight, scheme, imatrix=imatrix, scale_dtype=scale_dtype)


def objective(weight, rounded, case, imatrix):
    """What the search says it minimises, of each group, float64: squared error, and what of it changes the gain."""
    w = grouped(weight.double(), case)
    r, h = w - grouped(rounded.double(), case), grouped(imatrix.double().expand(weight.shape), case)
    along = (h * w * r).sum(-1).square() / (h * w * w).sum(-1).clamp(min=1e-300)
    return (h * r * r).sum(-1) + LOUDNESS * along


def error(data_type, weight, case, imatrix, scale_dtype, **offers):
    """The objective of a rounded weight; the weight as float32, so that scales alone are judged."""
    rounded, *_ = data_type.quant_tensor(
        weight.float(), case["bits"], case["group_size"], scale_dtype=scale_dtype, **offers
    )
    return objective(weight, rounded, case, imatrix)


def cases(recorded):
    for described, tensors in recorded("opt_rtn_int_sym"):
        yield {k: described[k] for k in ("bits", "group_size")}, tensors


@pytest.mark.slow
def test_symmetric_search_matches_or_beats_the_recorded_one(recorded):
    ours, theirs = [], []
    for case, tensors in cases(recorded):
        weight, imatrix, their_scale = tensors["weight"], tensors["imatrix"], tensors["scale"].float()
        # The recorded values were rounded to the dtype of the weight; the codes in them give the error of their scale.
        codes = (grouped(tensors["qdq"].float(), case) / their_scale).round()
        rounded = revert_tensor_by_pad(codes * their_scale, *padding(weight, case))
        recorded_error = objective(weight, rounded, case, imatrix)
        # Their scales are float32, which no file keeps: compared like with like ours are never worse, beyond what
        # float32 leaves of a difference 2^8 times smaller than its terms (2^-15, twice that of its square) ...
        found = search(IntSym(), weight, case, imatrix, torch.float32)
        same = error(IntSym(), weight, case, imatrix, torch.float32, **found)
        assert (same <= recorded_error * (1 + 1e-4)).all(), case
        # ... and rounded to the float16 of a file they lose what that rounding costs, up to 2^-11 of the scale, thus of
        # the gain, which shows at 8 bits.
        found = search(IntSym(), weight, case, imatrix, torch.float16)
        stored = error(IntSym(), weight, case, imatrix, torch.float16, **found)
        rounding = 2.0**-22 * objective(weight, torch.zeros_like(weight), case, imatrix)
        assert (stored <= recorded_error * 1.005 + rounding).all(), case
        ours.append(stored.sum())
        theirs.append(recorded_error.sum())
    gains = torch.stack(ours) / torch.stack(theirs)
    assert gains.max() <= 1.001
    assert gains.mean() < 0.97


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_never_worse_than_plain_rounding(recorded, data_type, scale_dtype):
    for case, tensors in cases(recorded):
        weight, imatrix = tensors["weight"], tensors["imatrix"]
        found = search(data_type, weight, case, imatrix, scale_dtype)
        plain = error(data_type, weight, case, imatrix, scale_dtype)
        assert (error(data_type, weight, case, imatrix, scale_dtype, **found) <= plain).all(), case


@EACH
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [0, -1, 48])
def test_every_width_and_grouping_gains(data_type, bits, group_size):
    weight = torch.randn(6, 96 + 10, generator=torch.Generator().manual_seed(bits))
    case, even = {"bits": bits, "group_size": group_size}, torch.ones(106)
    found = search(data_type, weight, case, None, torch.float16)
    before = error(data_type, weight, case, even, torch.float16)
    after = error(data_type, weight, case, even, torch.float16, **found)
    assert (after <= before).all()
    if bits < 5:
        assert after.sum() < 0.95 * before.sum()
    elif group_size != 0:  # one scale for everything and fine steps: there may be nothing better
        assert after.sum() < before.sum()


@EACH
def test_what_is_found_is_what_is_used(data_type):
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    imatrix = torch.rand(128, generator=torch.Generator().manual_seed(1))
    for bits in (2, 4, 8):
        found = search(data_type, weight, {"bits": bits, "group_size": 32}, imatrix, torch.float16)
        _, scale, zero_point = data_type.quant_tensor(weight, bits, 32, **found)
        if data_type.name != "int_asym":
            assert torch.equal(scale.float(), found["init_scale"])
        else:
            # The range is a whole number of scales on either side of zero, exactly.
            assert found["tensor_min"].dtype == found["tensor_max"].dtype == torch.float32
            on_grid = found["tensor_min"] == -(scale * zero_point).flatten()
            plain = weight.view(-1, 32).amin(-1).clamp(max=0) == found["tensor_min"]
            assert (on_grid | plain).all()
            assert on_grid.float().mean() > 0.7


@EACH
def test_outliers_that_do_not_matter_are_cut_off(data_type):
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    weight[:, 5] = 40.0
    imatrix = torch.ones(64)
    imatrix[5] = 1e-6
    case = {"bits": 3, "group_size": 64}
    found = search(data_type, weight, case, imatrix, torch.float16)
    after = error(data_type, weight, case, imatrix, torch.float16, **found)
    assert (after < 0.2 * error(data_type, weight, case, imatrix, torch.float16)).all()


@EACH
def test_groups_without_importance_count_evenly(data_type):
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    imatrix = torch.rand(64, generator=torch.Generator().manual_seed(1))
    imatrix[:32] = 0.0
    case = {"bits": 3, "group_size": 32}
    uneven = search(data_type, weight, case, imatrix, torch.float16)
    even = search(data_type, weight, case, None, torch.float16)
    for name, value in uneven.items():
        assert torch.equal(value.view(4, 2)[:, 0], even[name].view(4, 2)[:, 0])
        assert not torch.equal(value, even[name])
    nothing = search(data_type, weight, case, torch.zeros(64), torch.float16)
    assert all(torch.equal(nothing[name], even[name]) for name in even)


@EACH
def test_pieces_join(data_type, monkeypatch):
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    imatrix = torch.rand(64, generator=torch.Generator().manual_seed(1))
    whole = search(data_type, weight, {"bits": 4, "group_size": 32}, imatrix, torch.float16)
    monkeypatch.setattr("auto_round_int.search.CHUNK_CPU", 200)
    pieces = search(data_type, weight, {"bits": 4, "group_size": 32}, imatrix, torch.float16)
    assert all(torch.equal(pieces[name], whole[name]) for name in whole)
