# SPDX-License-Identifier: Apache-2.0
"""Divergence of next-token distributions from logits: torch's own functions in float64 say what it is."""

import pytest
import torch
import torch.nn.functional as F

from auto_round.tuning import divergence as module
from auto_round.tuning.divergence import divergence, some_tokens

WORDS = 37


def logits(*shape, dtype=torch.float32, apart=0.3):
    """Of a model, and of another one that says nearly the same."""
    generator = torch.Generator().manual_seed(0)
    wanted = 3 * torch.randn(*shape, generator=generator)
    found = wanted + apart * torch.randn(*shape, generator=generator)
    return wanted.to(dtype), found.to(dtype).requires_grad_()


def exact(wanted, found):
    """The divergence and its gradient, float64."""
    found = found.detach().double().requires_grad_()
    of_both = (x.log_softmax(-1) for x in (found, wanted.double()))
    total = F.kl_div(*of_both, reduction="sum", log_target=True)
    return total.detach(), *torch.autograd.grad(total, found)


@pytest.mark.parametrize("at_once", [1, 3 * WORDS, 1 << 17])
@pytest.mark.parametrize("shape", [(1, 1), (7,), (2, 5)], ids=str)
def test_numbers(shape, at_once, monkeypatch):
    monkeypatch.setattr(module, "LOGITS_CPU", at_once)
    wanted, found = logits(*shape, WORDS)
    total = divergence(wanted, found)
    (gradient,) = torch.autograd.grad(total, found)
    true_total, true_gradient = exact(wanted, found)
    # Exponentials and their sums are rounded to 24 bits, a few one after the other; probabilities are at most 1.
    assert total.dtype == torch.float32
    assert torch.isclose(total.double(), true_total, rtol=1e-5, atol=1e-6)
    assert torch.allclose(gradient.double(), true_gradient, rtol=1e-5, atol=1e-6)


def test_gradients_of_bfloat16_are_rounded_once_and_by_what_they_are_divided():
    wanted, found = logits(4, WORDS, dtype=torch.bfloat16)
    _, true_gradient = exact(wanted, found)
    for count, roundings in ((4, 1), (37, 2)):  # dividing by 4 rounds nothing
        (gradient,) = torch.autograd.grad(divergence(wanted, found) / count, found)
        assert gradient.dtype == torch.bfloat16
        # Half a unit in the last of 8 bits each, and what float32 did before to a difference of probabilities.
        assert torch.allclose(gradient.double(), true_gradient / count, rtol=roundings * 2**-8 + 1e-5, atol=1e-6)


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_what_is_added_to_all_logits_of_a_token_changes_nothing(shift):
    """Numbers of which neither the exponential nor its sum is a float32."""
    wanted, found = (8 * torch.arange(WORDS) % 11 / 8.0 for _ in range(2))
    found = found + torch.arange(WORDS) % 3 / 8.0
    assert divergence(wanted, found) > 0.001
    assert divergence(wanted + shift, found - shift) == divergence(wanted, found)


def test_equal_models_are_not_apart():
    wanted, _ = logits(5, WORDS)
    found = wanted.clone().requires_grad_()
    total = divergence(wanted, found)
    (gradient,) = torch.autograd.grad(total, found)
    assert total == 0
    assert not gradient.any()


def test_nothing_is_kept_where_nothing_is_learnt():
    wanted, found = logits(5, WORDS)
    with torch.no_grad():
        assert not divergence(wanted, found).requires_grad
    assert not divergence(wanted, found.detach()).requires_grad


def test_all_tokens_take_their_turn_whatever_the_vocabulary(monkeypatch):
    for at_once in (1, WORDS, 2 * WORDS, 100 * WORDS):
        monkeypatch.setattr(module, "LOGITS_CPU", at_once)
        turns = [index for some in some_tokens(torch.zeros(5, WORDS)) for index in range(5)[some]]
        assert turns == list(range(5))
