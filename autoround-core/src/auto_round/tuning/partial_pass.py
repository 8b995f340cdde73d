# SPDX-License-Identifier: Apache-2.0
"""Passes through a block for those who watch some of its layers: what comes after the last of these is left out."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import nn

__all__ = ["PartialPass"]


class _Reached(Exception):
    """Ends a pass: whoever watches has seen everything."""


class PartialPass:
    """Runs batches through a block as far as its watched layers lie.

    How often those are called the first pass tells, which is a whole one. A block whose watched layers are fed a
    selection of its tokens, as experts are, calls them as often as it happens to be, and is run to its end every time.
    """

    def __init__(self, run: Callable[[torch.Tensor], object], layers: Collection[nn.Module]) -> None:
        """Args:
        run: takes hidden states, [batch, length, features], through the block.
        layers: of the block, those that are watched.
        """
        self._run, self._layers = run, layers
        self._calls: int | None = None

    def __call__(self, hidden: torch.Tensor) -> None:
        """Run one batch for the hooks that are on the layers already."""
        calls, selected = 0, False

        def count(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            nonlocal calls, selected
            calls += 1
            selected |= args[0].shape[:-1] != hidden.shape[:-1]
            if calls == self._calls and not selected:
                raise _Reached

        # After those of whoever watches: hooks are called in the order they came.
        handles = [layer.register_forward_pre_hook(count) for layer in self._layers]
        try:
            self._run(hidden)
        except _Reached:
            return
        finally:
            for handle in handles:
                handle.remove()
        if self._calls is None:
            self._calls = 0 if selected else calls
