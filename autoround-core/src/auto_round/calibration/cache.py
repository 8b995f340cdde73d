# SPDX-License-Identifier: Apache-2.0
"""The range of keys and values, as an attention layer would put them into its cache."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from auto_round.run.ranks import Ranks

__all__ = ["CacheObserver", "find_caches"]

ARGUMENT = "past_key_values"
"""How models call the cache they pass around."""


def find_caches(block: nn.Module) -> dict[str, nn.Module]:
    """The modules of a block that keep keys and values: the innermost ones that are handed a cache."""
    takers = {
        name: module
        for name, module in block.named_modules()
        if name and ARGUMENT in inspect.signature(module.forward).parameters
    }
    return {n: m for n, m in takers.items() if not any(other.startswith(f"{n}.") for other in takers)}


class CacheObserver:
    """Stands in for the cache of attention layers and notes what they would store.

    Attributes:
        ranges: for each layer and "k" or "v" the least and greatest number, float32 scalars, zero included.
        mask: which tokens of the batch that is running count, bool [batch, length], or None for all.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = layers
        self.ranges: dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]] = {}
        self.mask: torch.Tensor | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Observe for as long as the context lasts."""
        handles = [
            module.register_forward_pre_hook(self._hand_cache(name), with_kwargs=True)
            for name, module in self._layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def gather(self, ranks: Ranks) -> None:
        """Put together what the ranks of a run have seen, each of its own samples."""
        keys = [(name, part) for name in self._layers for part in ("k", "v")]
        if ranks.size == 1 or not keys:
            return
        # A rank that had no samples has seen none of them, and must add its part all the same.
        seen = ranks.add_up(torch.tensor([int(key in self.ranges) for key in keys])).tolist()
        for key in (key for key, count in zip(keys, seen, strict=True) if count):
            low, high = self.ranges.get(key, (torch.zeros(()), torch.zeros(())))
            self.ranges[key] = (ranks.least(low.cpu()), ranks.most(high.cpu()))

    def _hand_cache(self, name: str) -> Any:
        def hand(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {**kwargs, ARGUMENT: _Passing(self, name)}

        return hand

    def note(self, key: tuple[str, str], states: torch.Tensor) -> None:
        """Take keys or values, [batch, heads, length, features]."""
        if self.mask is not None and states.shape[2] == self.mask.shape[1]:
            states = states.transpose(1, 2)[self.mask]
        low, high = (end.float() for end in torch.aminmax(states))
        zero = torch.zeros_like(low)
        least, most = self.ranges.get(key, (zero, zero))
        self.ranges[key] = (torch.minimum(least, low), torch.maximum(most, high))


class _Passing:
    """A cache that holds nothing."""

    def __init__(self, observer: CacheObserver, name: str) -> None:
        self._observer, self._name = observer, name

    @torch.no_grad()
    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hand on what would be stored and was before, which is nothing."""
        self._observer.note((self._name, "k"), key_states)
        self._observer.note((self._name, "v"), value_states)
        return key_states, value_states
