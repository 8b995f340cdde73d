# SPDX-License-Identifier: Apache-2.0
"""Searched grids: against ggml's C quantizers on the same tensor and importance, and against plain rounding."""

import pytest
import torch

from auto_round_gguf import block, search
from auto_round_gguf.schemes import plain_scheme
from auto_round_gguf.types import BLOCK_TYPES

every_kind = pytest.mark.parametrize("kind", list(BLOCK_TYPES.values()), ids=lambda k: k.name)


def importances(columns):
    generator = torch.Generator().manual_seed(7)
    flat = 0.1 + torch.rand(columns, generator=generator)
    steep = torch.rand(columns, generator=generator) ** 4 + 1e-3
    return {"flat": flat, "steep": steep, "none": None}


def error(found, weight, importance):
    squares = (found.double() - weight.double()).square()
    return (squares if importance is None else squares * importance.double()).sum().item()


def searched(weight, kind, importance, **offers):
    quantizer = getattr(block, kind.name.upper())
    found = quantizer.search(weight, plain_scheme(kind), imatrix=importance, scale_dtype=torch.float16)
    return quantizer.quant_tensor(weight, **found, **offers)[0]


@every_kind
def test_no_worse_than_ggml(weights, kind, ggml, dequantize):
    for name, importance in importances(512).items():
        for which, weight in weights.items():
            ours = error(searched(weight, kind, importance), weight, importance)
            theirs = error(dequantize(ggml.quantize(weight, kind, importance), kind), weight, importance)
            assert ours <= theirs, (which, name)


@every_kind
def test_no_worse_than_plain_rounding_in_any_super_block(weights, kind):
    quantizer = getattr(block, kind.name.upper())
    for importance in importances(512).values():
        for name, weight in weights.items():
            squares = torch.ones(512) if importance is None else importance
            both = [
                ((found.double() - weight.double()).square() * squares).reshape(-1, kind.block).sum(1)
                for found in (searched(weight, kind, importance), quantizer.quant_tensor(weight)[0])
            ]
            assert (both[0] <= both[1]).all(), name


@every_kind
def test_a_weight_on_the_grid_stays(kind):
    """What a grid gave once is found again without error."""
    weight = torch.randn(16, 512, generator=torch.Generator().manual_seed(3)) * 0.1
    on_grid = searched(weight, kind, None)
    again = searched(on_grid, kind, None)
    # A super-block's two levels of scales can come out other than they were made.
    assert error(again, on_grid, None) <= 0.02 * error(on_grid, weight, None)


@every_kind
def test_rows_are_searched_by_themselves(kind, monkeypatch):
    weight = torch.randn(12, 512, generator=torch.Generator().manual_seed(5))
    whole = searched(weight, kind, None)
    monkeypatch.setattr(search, "CHUNK_CPU", 512)
    by_row = searched(weight, kind, None)
    # The same, but for candidates so close that the order of a sum decides between them.
    for one, other, row in zip(whole, by_row, weight, strict=True):
        assert error(other, row, None) == pytest.approx(error(one, row, None), rel=1e-2)


@every_kind
def test_importance_that_says_nothing_or_nonsense(kind):
    weight = torch.randn(8, 512, generator=torch.Generator().manual_seed(6))
    plain = searched(weight, kind, None)
    assert torch.equal(searched(weight, kind, torch.zeros(512)), plain)
    odd = torch.ones(512)
    odd[3], odd[4], odd[5:300] = float("nan"), -1.0, 0.0
    assert torch.isfinite(searched(weight, kind, odd)).all()


@every_kind
def test_a_searched_grid_can_be_tuned(kind):
    weight = torch.randn(8, 512, generator=torch.Generator().manual_seed(8))
    groups = weight.numel() // kind.group
    quantizer = getattr(block, kind.name.upper())
    parameters = {
        name: torch.full((groups, kind.group) if name == "v" else (groups,), 0.0 if name == "v" else 1.0)
        for name in quantizer.tuned_after_search
    }
    for parameter in parameters.values():
        parameter.requires_grad_()
    assert (set(parameters) == {"v"}) == (kind.super_bits is not None)  # one scale moves all of a super-block
    tuned = searched(weight, kind, None, **parameters)
    assert torch.equal(tuned.detach(), searched(weight, kind, None))
    (tuned - weight).square().sum().backward()
    for parameter in parameters.values():
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0
    # A scale may grow beyond what its quantized form held: the unit of its super-block grows with it.
    found = quantizer.search(weight, plain_scheme(kind), imatrix=None, scale_dtype=torch.float16)
    _, before, _ = quantizer.quant_tensor(weight, **found)
    _, after, _ = quantizer.quant_tensor(weight, **found, max_scale=torch.full((groups,), 1.5))
    # Quantized scales move to the nearest multiple of a unit, the largest of which is 15 or more of them.
    assert after.abs().amax().item() == pytest.approx(1.5 * before.abs().amax().item(), rel=1 / 30)
