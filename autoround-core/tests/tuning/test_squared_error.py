# SPDX-License-Identifier: Apache-2.0
"""The sum of squared differences and its gradient: autograd in float64 says what they are."""

import pytest
import torch

from auto_round.tuning import squared_error as module
from auto_round.tuning.squared_error import sum_of_squares

SHAPE = (3, 5, 7)


def answers(dtype):
    """What a block says, and what it was to say."""
    generator = torch.Generator().manual_seed(0)
    output, target = (torch.randn(SHAPE, generator=generator).to(dtype) for _ in range(2))
    return output.requires_grad_(), target


def exact(output, target, mask):
    """The sum and its gradient, float64."""
    output = output.detach().double().requires_grad_()
    squares = (output - target.double()) ** 2
    total = (squares if mask is None else squares[mask]).sum()
    return total.detach(), *torch.autograd.grad(total, output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("some_count", [False, True])
@pytest.mark.parametrize("piece", [1, 10, 1 << 18])
def test_numbers(dtype, some_count, piece, monkeypatch):
    monkeypatch.setattr(module, "PIECE", piece)
    output, target = answers(dtype)
    before = output.detach().clone()
    mask = torch.arange(15).view(3, 5) % 4 > 0 if some_count else None
    total = sum_of_squares(output, target, mask)
    (gradient,) = torch.autograd.grad(total, output)
    true_total, true_gradient = exact(output, target, mask)
    # A difference, a square and a sum of 105 of them in float32; gradients are rounded once more, to the dtype.
    assert total.dtype == torch.float32
    assert torch.isclose(total.double(), true_total, rtol=1e-6, atol=0.0)
    assert gradient.dtype == dtype
    assert torch.allclose(gradient.double(), true_gradient, rtol=torch.finfo(dtype).eps / 2 + 2**-23, atol=0.0)
    assert torch.equal(output, before)


def test_what_it_is_multiplied_with_reaches_the_gradient():
    output, target = answers(torch.float32)
    (gradient,) = torch.autograd.grad(sum_of_squares(output, target) * 1000 / 7, output)
    assert torch.allclose(gradient.double(), exact(output, target, None)[1] * 1000 / 7, rtol=1e-6, atol=0.0)


def test_answers_need_not_be_contiguous():
    output, target = answers(torch.float32)
    turned, straight = (
        sum_of_squares(x, target) for x in (output.transpose(0, 1).contiguous().transpose(0, 1), output)
    )
    assert turned == straight
