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

from auto_round.data_type.untouched import writes_into
from auto_round.run.ranks import Ranks

__all__ = ["InputObserver"]


KEPT = 1024
"""Tokens of the first batch whose inputs are kept where some are."""

PIECE = 1 << 18
"""Numbers squared at a time: float32 copies of them stay in a CPU's caches."""


class InputObserver:
    """Watches linear layers.

    Attributes:
        layers: what it watches, by name.
        sums: importance per layer, float32 [in_features].
        lows, highs: range of a layer's input, float32 scalars, zero included.
        some: inputs of the first tokens of those layers, [up to KEPT, in_features], if any are kept.
        tokens: how many tokens reached each layer that any reached.
        mask: which tokens of the batch that is running count, bool [batch, length], or None for all.
    """

    def __init__(
        self, layers: Mapping[str, Any], importance: Collection[str], ranges: Collection[str], *, keep: bool = False
    ) -> None:
        """Args:
        layers: what to watch.
        importance, ranges: those of which importance, or the range, is wanted.
        keep: whether some inputs are wanted of those whose range is.
        """
        self._keep = keep
        self.some: dict[str, torch.Tensor] = {}
        self.layers, self._importance, self._ranges = layers, importance, ranges
        self.tokens: dict[str, int] = {}
        self.sums: dict[str, torch.Tensor] = {}
        self.lows: dict[str, torch.Tensor] = {}
        self.highs: dict[str, torch.Tensor] = {}
        self.mask: torch.Tensor | None = None
        self._squares = _Squares()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Observe for as long as the context lasts."""
        handles = [module.register_forward_pre_hook(self._hook(name)) for name, module in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._squares = _Squares()

    def _hook(self, name: str) -> Any:
        @torch.no_grad()
        def observe(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0]
            # Layers that see a selection of the tokens (experts) have another shape; they have no mask to apply.
            if self.mask is not None and x.shape[:-1] == self.mask.shape:
                x = x[self.mask]
            if x.numel() == 0:
                return
            self.tokens[name] = self.tokens.get(name, 0) + x.numel() // x.shape[-1]
            if name in self._importance:
                squares = self._squares.of(args[0], self.mask, x)
                self.sums[name] = self.sums[name] + squares if name in self.sums else squares
            if name in self._ranges:
                low, high = (end.float() for end in torch.aminmax(x))
                zero = torch.zeros_like(low)
                self.lows[name] = torch.minimum(self.lows.get(name, zero), low)
                self.highs[name] = torch.maximum(self.highs.get(name, zero), high)
                if self._keep and name not in self.some:
                    self.some[name] = x.reshape(-1, x.shape[-1])[:KEPT].clone()

        return observe

    def gather(self, ranks: Ranks) -> None:
        """Put together what the ranks of a run have seen, each of its own samples."""
        names = list(self.layers)
        if ranks.size == 1 or not names:
            return
        counts = ranks.add_up(torch.tensor([self.tokens.get(name, 0) for name in names]))
        self.tokens = {name: count for name, count in zip(names, counts.tolist(), strict=True) if count}
        for name in (n for n in self.tokens if n in self._importance):
            weight = self.layers[name].weight
            width = getattr(self.layers[name], "in_features", 0) or weight.shape[0]  # [in, out] where it is turned
            self.sums[name] = ranks.add_up(self.sums.get(name, torch.zeros(width)).cpu()).to(weight.device)
        for name in (n for n in self.tokens if n in self._ranges):
            device = self.layers[name].weight.device
            self.lows[name] = ranks.least(self.lows.get(name, torch.zeros(())).cpu()).to(device)
            self.highs[name] = ranks.most(self.highs.get(name, torch.zeros(())).cpu()).to(device)


class _Squares:
    """Sums of squares of inputs, computed once where layers are fed the same one after the other."""

    def __init__(self) -> None:
        self._last: torch.Tensor | None = None
        self._told: tuple[int, torch.Tensor | None] = 0, None
        self._sums = torch.empty(0)

    def of(self, given: torch.Tensor, mask: torch.Tensor | None, counted: torch.Tensor) -> torch.Tensor:
        """Over the tokens that count, float32 [in_features].

        Args:
            given: what the layer was called with.
            mask: which tokens of the batch count.
            counted: the tokens of `given` that do, [..., in_features].
        """
        writes, of_mask = self._told
        if self._last is not given or writes != writes_into(given) or of_mask is not mask:
            tokens = counted.reshape(-1, counted.shape[-1])
            rows = len(tokens) if tokens.device.type != "cpu" else max(1, PIECE // tokens.shape[1])
            self._sums = torch.stack([part.float().square().sum(0) for part in tokens.split(rows)]).sum(0)
            self._last, self._told = given, (writes_into(given), mask)
        return self._sums
