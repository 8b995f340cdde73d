# SPDX-License-Identifier: Apache-2.0
"""The two activations that travel along the blocks, and the runner that takes them through one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from auto_round.calibration.attention import attention_by_rows
from auto_round.calibration.cache import CacheObserver
from auto_round.calibration.inputs import BlockCall, BlockInputs, capture_block_inputs
from auto_round.calibration.observer import InputObserver
from auto_round.calibration.store import ActivationStore
from auto_round.run.ranks import Ranks

if TYPE_CHECKING:
    from auto_round.calibration import CalibrationTokens
    from auto_round.model.opened import OpenModel
    from auto_round.tuning.options import TuningOptions

__all__ = ["PROBE_SAMPLES", "Chains", "Runner"]

PROBE_SAMPLES = 1
"""Samples that places for scaling channels are looked for with."""


@dataclass
class Chains:
    """Activations of all samples, between one block and the next. Every rank of a run has all of them.

    Attributes:
        recorded: how all blocks are called.
        reference: input of the next block in the original model, [samples, length, features].
        quantized: its input in the quantized model; the same tensor until something differs.
        mask: which tokens count, bool [samples, length], or None for all.
        batch_size: samples per forward pass of all ranks together.
        store: where activations are kept.
        ranks: the processes that share the work.
    """

    recorded: BlockInputs
    reference: torch.Tensor
    quantized: torch.Tensor
    mask: torch.Tensor | None
    batch_size: int
    store: ActivationStore
    ranks: Ranks

    @classmethod
    def begin(
        cls,
        model: OpenModel,
        options: TuningOptions,
        tokens: CalibrationTokens,
        store: ActivationStore,
        ranks: Ranks,
    ) -> Chains:
        """Record what the first block is fed."""
        batch_size = tokens.per_batch(options.batch_size)
        # A rank's share of a batch differs by one sample at most.
        shares = {batch_size // ranks.size, -(-batch_size // ranks.size)} - {0, batch_size}
        shares |= {PROBE_SAMPLES} - {batch_size} if options.improved else set()
        recorded = capture_block_inputs(
            model.model, model.structure.block_list, tokens.input_ids, batch_size, tuple(sorted(shares))
        )
        first = store.like(recorded.hidden)
        first.copy_(recorded.hidden)
        recorded.hidden = torch.empty(0)
        mask = None if bool(tokens.mask.all()) else tokens.mask
        return cls(recorded, first, first, mask, batch_size, store, ranks)

    def batches(self) -> Iterator[slice]:
        """The samples of this rank, a batch at a time."""
        mine = self.ranks.part(-(-len(self.reference) // self.batch_size))
        for start in range(mine.start * self.batch_size, min(mine.stop * self.batch_size, len(self.reference)),
                           self.batch_size):  # fmt: skip
            yield slice(start, min(start + self.batch_size, len(self.reference)))


class Runner:
    """Runs one block on batches of hidden states, wherever the block is."""

    def __init__(self, block: nn.Module, index: int, chains: Chains, device: torch.device, dtype: torch.dtype) -> None:
        self._block, self._device, self._dtype = block, device, dtype
        self._calls: dict[int, BlockCall] = {
            size: calls[index].to(device, dtype) for size, calls in chains.recorded.calls.items()
        }

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        with attention_by_rows(self._device):
            return self._calls[len(hidden)].run(self._block, hidden.to(self._device, self._dtype))

    def over(
        self, chains: Chains, inputs: torch.Tensor, observers: Sequence[InputObserver | CacheObserver] = ()
    ) -> torch.Tensor:
        """Every sample through the block."""
        output = chains.store.like(inputs)
        for part in chains.batches():
            if chains.mask is not None:
                for observer in observers:
                    observer.mask = chains.mask[part].to(self._device)
            output[part] = self(inputs[part]).to(output.dtype)
        chains.ranks.complete(output, chains.batch_size)
        for observer in observers:
            observer.gather(chains.ranks)
        return output
