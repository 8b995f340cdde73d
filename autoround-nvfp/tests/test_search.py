# SPDX-License-Identifier: Apache-2.0
"""The search: never worse than plain rounding, never worse than the recorded one, with a shared scale too."""

import pytest
import torch

from auto_round import QuantizationScheme
from auto_round.data_type.grouping import reshape_pad_tensor_by_group_size
from auto_round_nvfp.nvfp import NvFp4, NvFp4V2, NvFp4V2GlobalScale

ALL = pytest.mark.parametrize("data_type", [NvFp4(), NvFp4V2(), NvFp4V2GlobalScale()], ids=lambda d: d.name)
SUMS = 1 + 1e-6
"""Candidates are compared by float32 sums, judged here by float64 ones."""


def search(data_type, weight, imatrix, group_size=16, **shared):
    scheme = QuantizationScheme(bits=4, group_size=group_size, data_type=data_type.name)
    return data_type.search(weight, scheme, imatrix=imatrix, scale_dtype=torch.float16, **shared)


def error(data_type, weight, imatrix, group_size=16, **offers):
    """Weighted squared error of each block, float64; the weight as float32, so that scales alone are judged."""
    rounded, *_ = data_type.quant_tensor(weight.float(), group_size=group_size, **offers)
    weighted = (rounded.double() - weight.double()).square() * imatrix.double()
    return reshape_pad_tensor_by_group_size(weighted, group_size)[0].sum(-1)


def test_matches_or_beats_the_recorded_search(recorded):
    better = 0
    for case, tensors in recorded("opt_rtn_nv_fp4"):
        weight, imatrix = tensors["weight"], tensors["imatrix"]
        theirs = error(NvFp4(), weight, imatrix, init_scale=tensors["scale"])
        ours = error(NvFp4(), weight, imatrix, **search(NvFp4(), weight, imatrix))
        assert (ours <= theirs * SUMS).all(), case
        better += ours.sum() < 0.999 * theirs.sum()
        # The recorded scales are what the recorded values were made with, up to the last bit of a step.
        again, *_ = NvFp4().quant_tensor(weight, init_scale=tensors["scale"])
        torch.testing.assert_close(again, tensors["qdq"], rtol=2 * 2**-23, atol=0)
    assert better >= 3


@ALL
@pytest.mark.parametrize("shared", [None, 1.0, 0.2, 1e-3])
def test_never_worse_than_plain_rounding(recorded, data_type, shared):
    for case, tensors in recorded("opt_rtn_nv_fp4"):
        weight, imatrix = tensors["weight"], tensors["imatrix"]
        offers = {}
        if shared is not None and data_type.block_scale.two_levels:
            offers = {"global_scale": data_type.share([weight], None)["global_scale"] * shared}
        plain = error(data_type, weight, imatrix, **offers)
        found = search(data_type, weight, imatrix, **offers)
        assert (error(data_type, weight, imatrix, **found, **offers) <= plain * SUMS).all(), case


def test_the_search_knows_the_shared_scale(normal):
    """A search under a scale of its own finds block scales that mean something else under the shared one."""
    weight, imatrix = normal(32, 64), torch.ones(64)
    shared = {"global_scale": NvFp4().share([weight, weight * 7], None)["global_scale"]}
    knowing = error(NvFp4(), weight, imatrix, **search(NvFp4(), weight, None, **shared), **shared).sum()
    plain = error(NvFp4(), weight, imatrix, **shared).sum()
    unknowing = error(NvFp4(), weight, imatrix, **search(NvFp4(), weight, None), **shared).sum()
    assert knowing < 0.9 * plain < unknowing


@ALL
def test_every_block_takes_the_best_of_all_scales(data_type, normal):
    """Against brute force over every code of the format."""
    weight, imatrix = normal(4, 32), torch.rand(32, generator=torch.Generator().manual_seed(1))
    found = error(data_type, weight, imatrix, **search(data_type, weight, imatrix))
    every = data_type.block_scale.format.values(torch.arange(255))
    best = torch.stack(
        [error(data_type, weight, imatrix, init_scale=scale.expand(8, 1)) for scale in every.unique()]
    ).amin(0)
    assert (found <= best * 1.001).all()


@ALL
@pytest.mark.parametrize("group_size", [16, 32])
def test_what_is_found_is_what_is_stored(data_type, group_size, normal):
    weight = normal(16, 64).bfloat16()
    found = search(data_type, weight, None, group_size)
    _, scale, _ = data_type.quant_tensor(weight, group_size=group_size, **found)
    assert torch.equal(scale, found["init_scale"])
    even, plain = torch.ones(64), error(data_type, weight, torch.ones(64), group_size)
    assert error(data_type, weight, even, group_size, **found).sum() < 0.95 * plain.sum()


@ALL
def test_outliers_that_do_not_matter_are_cut_off(data_type, normal):
    weight, imatrix = normal(8, 64), torch.ones(64)
    weight[:, 5] = 12.0
    imatrix[5] = 1e-6
    found = search(data_type, weight, imatrix)
    after = error(data_type, weight, imatrix, **found)[::4]
    assert (after < 0.3 * error(data_type, weight, imatrix)[::4]).all()


@ALL
def test_blocks_without_importance_count_evenly(data_type, normal):
    weight, imatrix = normal(4, 32), torch.rand(32, generator=torch.Generator().manual_seed(1))
    imatrix[:16] = 0.0
    uneven = search(data_type, weight, imatrix)["init_scale"].view(4, 2)
    even = search(data_type, weight, None)["init_scale"].view(4, 2)
    assert torch.equal(uneven[:, 0], even[:, 0])
    assert torch.equal(search(data_type, weight, torch.zeros(32))["init_scale"].view(4, 2), even)


@ALL
def test_pieces_join_and_zeros_are_left_alone(data_type, normal, monkeypatch):
    weight, imatrix = normal(16, 64), torch.rand(64, generator=torch.Generator().manual_seed(1))
    weight[3] = 0.0
    whole = search(data_type, weight, imatrix)["init_scale"]
    assert (whole.view(16, 4)[3] == 0).all()
    monkeypatch.setattr("auto_round_nvfp.search.CHUNK_CPU", 200)
    assert torch.equal(search(data_type, weight, imatrix)["init_scale"], whole)
    assert (search(data_type, torch.zeros(4, 16), None)["init_scale"] == 0).all()
