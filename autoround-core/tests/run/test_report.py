# SPDX-License-Identifier: Apache-2.0
"""Which layers lose most: the number by hand, and when it is worth a word."""

import json

import pytest
import torch

from auto_round import AutoRound
from auto_round.run.report import told_hurt
from auto_round.tuning.prepared import relative_error
from auto_round.tuning.result import BlockResult


def test_the_error_by_hand():
    weight, rounded = torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([[2.0, 2.0], [0.0, 1.0]])
    assert relative_error(weight, rounded, None) == pytest.approx(1 / 6)
    assert relative_error(weight, rounded, torch.tensor([1.0, 0.0])) == 0.0
    assert relative_error(weight, rounded, torch.tensor([1.0, 2.0])) == pytest.approx(2 / 8)
    turned = weight.T.contiguous().T  # columns lie one behind the other
    assert relative_error(turned, rounded, torch.tensor([1.0, 2.0])) == pytest.approx(2 / 8)
    assert relative_error(torch.zeros(2, 2), torch.zeros(2, 2), None) == 0.0


def block(**errors):
    return BlockResult("b", (), errors=errors)


def test_only_layers_that_stand_out_are_named():
    assert told_hurt([]) is None
    assert told_hurt([block(a=0.1, b=0.11), block(c=0.12)]) is None
    told = told_hurt([block(a=0.1, b=0.11), block(c=0.12, d=0.9, e=0.5, f=0.1)])
    assert told.startswith("rounding costs d (0.9), e (0.5) most")
    assert json.loads(told.split("'")[1]) == {"d": {"bits": 16}, "e": {"bits": 16}}


@pytest.mark.parametrize("options", [{"iters": 2}, {"iters": 0}, {"iters": 0, "disable_opt_rtn": True}])
def test_a_run_reports_every_layer(model_dir, registry, tokens, options):
    job = AutoRound(
        model_dir,
        scheme="STEPS4",
        dataset=tokens,
        nsamples=8,
        batch_size=4,
        registry=registry,
        verbose=False,
        **options,
    )
    job.quantize()
    errors = {name: error for part in job.report.blocks for name, error in part.errors.items()}
    assert set(errors) == {layer.name for layer in job.plan().quantized}
    # Four bits in groups of 32: a step is a seventh of the largest, its rounding error a twelfth of its square.
    assert all(0.0 < error < 0.05 for error in errors.values())
