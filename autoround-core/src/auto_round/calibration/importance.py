# SPDX-License-Identifier: Apache-2.0
"""Importance of input channels: the sum of their squares over calibration, the diagonal of each layer's input Gram."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["ImportanceObserver"]


class ImportanceObserver:
    """Watches linear layers while calibration data flows through them.

    Attributes:
        sums: per layer, float32 [in_features].
        mask: which tokens of the batch that is running count, bool [batch, length], or None for all.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = layers
        self.sums: dict[str, torch.Tensor] = {}
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
            squares = x.reshape(-1, x.shape[-1]).float().square().sum(0)
            if name in self.sums:
                self.sums[name] += squares
            else:
                self.sums[name] = squares

        return observe
