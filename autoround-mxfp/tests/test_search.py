# SPDX-License-Identifier: Apache-2.0
"""The search for shared exponents: never worse than the rule, and the best there is."""

import pytest
import torch

import auto_round_mxfp.microscaling as family
from auto_round.schemes import QuantizationScheme


def error(name, weight, imatrix, **offers):
    rounded = getattr(family, name).quant_tensor(weight, **offers)[0]
    return ((rounded.double() - weight.double()).square() * imatrix.double()).reshape(-1, 32).sum(-1)


def search(name, weight, imatrix):
    data_type = getattr(family, name)
    scheme = QuantizationScheme(bits=data_type.element(None).bits, group_size=32, data_type=name)
    return data_type.search(weight, scheme, imatrix=imatrix, scale_dtype=torch.float16)


def sample(seed=0):
    """Heavy-tailed weights and importances, as models with outliers have them."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(32, 512, generator=generator) * torch.exp(torch.randn(512, generator=generator))
    return weight, torch.exp(3 * torch.randn(512, generator=generator))


@pytest.mark.parametrize("name", ["mx_fp4", "mx_fp4_rceil", "mx_fp6e3m2", "mx_fp8", "mx_fp8e5m2", "mx_int4", "mx_int2"])
def test_no_exponent_within_reach_is_better(name):
    weight, imatrix = sample()
    found = search(name, weight, imatrix)["init_scale"]
    ours, plain = error(name, weight, imatrix, init_scale=found), error(name, weight, imatrix)
    _, exponents, _ = getattr(family, name).quant_tensor(weight)
    assert (ours <= plain * (1 + 1e-6)).all()
    assert (ours < plain).sum() > 20
    for offset in range(-4, 3):
        other = error(name, weight, imatrix, init_scale=2.0 ** (exponents + offset))
        assert (ours <= other * (1 + 2e-6)).all(), offset  # two margins of the search


def test_blocks_that_no_exponent_improves_stay_as_they_are():
    weight = torch.randint(-6, 7, (4, 64), generator=torch.Generator().manual_seed(0)).float()
    weight[:, ::32] = 6
    weight[weight.abs() == 5] = 4  # now every weight is on the grid
    weight[0] = 0
    found = search("mx_fp4", weight, None)["init_scale"]
    assert torch.equal(found, 2.0 ** family.mx_fp4.quant_tensor(weight)[1])


def test_importance_counts_as_ratios_within_a_block():
    weight, imatrix = sample()
    found = search("mx_fp4", weight, imatrix)["init_scale"]
    for factor in (1e-30, 1e30):
        assert torch.equal(search("mx_fp4", weight, imatrix * factor)["init_scale"], found)
    nothing = search("mx_fp4", weight, torch.zeros(512))["init_scale"]
    assert torch.equal(nothing, search("mx_fp4", weight, None)["init_scale"])


def test_sizes_at_the_ends_of_the_range():
    weight, imatrix = sample()
    for size in (2.0**-140, 2.0**-125, 2.0**100):
        scaled = (weight * size).clamp(-3e38, 3e38)
        found = search("mx_int8", scaled, imatrix)["init_scale"]
        assert (found >= 2.0**-127).all()
        assert torch.isfinite(found).all()


def test_only_narrow_elements_ask_for_importance():
    for name, wanted in (("mx_fp4", {"imatrix"}), ("mx_fp6", {"imatrix"}), ("mx_fp8", set())):
        data_type = getattr(family, name)
        scheme = QuantizationScheme(bits=data_type.element(None).bits, group_size=32, data_type=name)
        assert data_type.statistics(scheme) == wanted
