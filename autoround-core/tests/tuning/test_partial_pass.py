# SPDX-License-Identifier: Apache-2.0
"""Passes that end where nobody watches any more: what is seen, what is not run, and when everything is."""

import pytest
import torch
from torch import nn

from auto_round.tuning.partial_pass import PartialPass


class Block(nn.Module):
    """Three layers, of which the second runs twice; then one that gets every token, or a selection of them."""

    def __init__(self, selecting):
        super().__init__()
        self.first, self.twice, self.third, self.expert = (nn.Linear(4, 4) for _ in range(4))
        self.selecting = selecting

    def forward(self, x):
        x = self.third(self.twice(self.twice(self.first(x))))
        chosen = x[x[..., 0] > x[..., 0].median()] if self.selecting else x
        for part in chosen.split(1):
            self.expert(part)
        return x


def watched(block, names, seen):
    layers = [block.get_submodule(name) for name in names]
    for layer in layers:
        layer.register_forward_pre_hook(lambda module, args: seen.append((module, args[0])))
    return layers


def batches():
    return torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("names", [["first"], ["twice"], ["first", "third"], ["twice", "expert"], []])
@pytest.mark.parametrize("selecting", [False, True])
def test_the_same_is_seen(names, selecting):
    block, all_seen, seen = Block(selecting), [], []
    watched(block, names, all_seen)
    for batch in batches():
        block(batch)
    all_seen = list(all_seen)
    run = PartialPass(block, watched(block, names, seen))
    for batch in batches():
        run(batch)
    assert len(seen) == len(all_seen)
    for (module, x), (other, y) in zip(seen, all_seen, strict=True):
        assert module is other
        assert torch.equal(x, y)


def test_what_comes_later_is_run_once():
    block, seen, later = Block(selecting=False), [], []
    watched(block, ["third"], later)
    run = PartialPass(block, watched(block, ["first", "twice"], seen))
    for batch in batches():
        run(batch)
    assert (len(seen), len(later)) == (9, 1)


def test_layers_that_see_a_selection_have_every_pass_whole():
    block, seen, outputs = Block(selecting=True), [], []
    block.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    run = PartialPass(block, watched(block, ["first", "expert"], seen))
    for batch in batches():
        run(batch)
    assert len(outputs) == 3


def test_other_exceptions_are_raised_and_no_hook_stays():
    block = Block(selecting=False)

    def broken(_hidden):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        PartialPass(broken, [block.first])(batches()[0])
    run = PartialPass(block, [block.first])
    for batch in batches():
        run(batch)
    assert not block.first._forward_pre_hooks
