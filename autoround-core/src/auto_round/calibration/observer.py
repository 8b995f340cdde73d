# SPDX-License-Identifier: Apache-2.0
"""What is observed of the inputs of layers while calibration data flows: how much each channel matters, and the range.

The importance of an input channel is the sum of its squares over calibration, the diagonal of the input's Gram matrix.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["InputObserver"]


class InputObserver:
    """Watches linear layers.

    Attributes:
        sums: importance per layer, float32 [in_features].
        lows, highs: range of a layer's input, float32 scalars, zero included.
        seen: the layers that any token reached.
        mask: which tokens of the batch that is running count, bool [batch, length], or None for all.
    """

    def __init__(self, layers: Mapping[str, nn.Module], importance: Collection[str], ranges: Collection[str]) -> None:
        """Args:
        layers: what to watch.
        importance, ranges: those of which importance, or the range, is wanted.
        """
        self._layers, self._importance, self._ranges = layers, importance, ranges
        self.seen: set[str] = set()
        self.sums: dict[str, torch.Tensor] = {}
        self.lows: dict[str, torch.Tensor] = {}
        self.highs: dict[str, torch.Tensor] = {}
        self.mask: torch.Tensor | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Observe for as long as the context lasts."""
        handles = [module.register_forward_pre_hook(self._hook(name)) for name, module in self._layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        @torch.no_grad()
        def observe(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0]
            # Layers that see a selection of the tokens (experts) have another shape; they have no mask to apply.
            if self.mask is not None and x.shape[:-1] == self.mask.shape:
                x = x[self.mask]
            if x.numel() == 0:
                return
            self.seen.add(name)
            if name in self._importance:
                squares = x.reshape(-1, x.shape[-1]).float().square().sum(0)
                self.sums[name] = self.sums[name] + squares if name in self.sums else squares
            if name in self._ranges:
                low, high = (end.float() for end in torch.aminmax(x))
                zero = torch.zeros_like(low)
                self.lows[name] = torch.minimum(self.lows.get(name, zero), low)
                self.highs[name] = torch.maximum(self.highs.get(name, zero), high)

        return observe
