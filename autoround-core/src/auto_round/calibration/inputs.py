# SPDX-License-Identifier: Apache-2.0
"""What the first block is fed, and with which other arguments every block is called.

One pass over the calibration tokens in which every block is replaced by a recorder: only the embedding and what a model
computes once for all blocks (masks, rotary tables) really run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from auto_round.errors import ModelError

__all__ = ["BlockCall", "BlockInputs", "capture_block_inputs", "run_after_blocks"]


@dataclass(frozen=True)
class BlockCall:
    """The arguments of one block beside its hidden states, and where those go.

    Attributes:
        keyword: name under which hidden states are passed, None where they are the first positional argument.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    keyword: str | None

    def run(self, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [batch, length, features] through the block."""
        if self.keyword is None:
            output = block(hidden, *self.args, **self.kwargs)
        else:
            output = block(*self.args, **{self.keyword: hidden}, **self.kwargs)
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def to(self, device: torch.device, dtype: torch.dtype) -> BlockCall:
        """The same call on another device, floating-point arguments in another dtype."""

        def move(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return value.to(device, dtype if value.is_floating_point() else value.dtype)
            if isinstance(value, tuple | list):
                return type(value)(move(v) for v in value)
            if isinstance(value, dict):
                return {k: move(v) for k, v in value.items()}
            return value

        return BlockCall(move(self.args), move(self.kwargs), self.keyword)


@dataclass
class BlockInputs:
    """Attributes:
    hidden: input of the first block, [samples, length, features], in the model's dtype.
    calls: for each batch size that occurs, the calls of all blocks in order.
    returned: how many things blocks return in a tuple that begins with their hidden states; 0 if these alone.
    """

    hidden: torch.Tensor
    calls: dict[int, list[BlockCall]] = field(default_factory=dict)
    returned: int = 0


class _Recorder(nn.Module):
    """Stands in a block's place: notes how it is called and hands the hidden states on unchanged, or a given answer."""

    def __init__(
        self,
        block: nn.Module,
        record: Callable[[torch.Tensor, BlockCall], None],
        returned: int,
        answer: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        # Past nn.Module's bookkeeping: the block must not become a child and change the model's state dict.
        self.__dict__["_block"] = block
        self._record = record
        self._returned = returned
        self._answer = answer

    def __getattr__(self, name: str) -> Any:
        # Models read attributes of their blocks (which kind of attention they want) while they run.
        return getattr(self.__dict__["_block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if args:
            hidden, rest, keyword = args[0], args[1:], None
        else:
            keyword = "hidden_states"
            if keyword not in kwargs:
                raise ModelError(f"{type(self.__dict__['_block']).__name__} is called without hidden states.")
            hidden, rest = kwargs.pop(keyword), ()
        self._record(hidden, BlockCall(rest, kwargs, keyword))
        hidden = hidden if self._answer is None else self._answer
        # What else there is, attention or states of other layers, is nothing that later blocks are given.
        return (hidden, *[None] * (self._returned - 1)) if self._returned else hidden


@torch.no_grad()
def capture_block_inputs(
    model: nn.Module, block_list: str, input_ids: torch.Tensor, batch_size: int, extra_batch_sizes: tuple[int, ...] = ()
) -> BlockInputs:
    """Run the model up to its blocks.

    Samples are right-padded, so under causal attention no real token sees padding, and no attention mask is passed:
    every sample of one length then shares its masks and position tables.

    Args:
        block_list: name of the module list that holds the blocks.
        input_ids: int64 [samples, length].
        extra_batch_sizes: batch sizes besides those the samples split into for which calls are wanted.

    Raises:
        ModelError: the model does not run its blocks one after the other.
    """
    blocks = model.get_submodule(block_list)
    assert isinstance(blocks, nn.ModuleList)
    device = next(model.parameters()).device
    returned = _things_returned(model, blocks, input_ids[:1, :2].to(device))
    hidden_parts: list[torch.Tensor] = []
    seen: list[BlockCall] = []

    def record(hidden: torch.Tensor, call: BlockCall) -> None:
        if not seen:
            hidden_parts.append(hidden)
        seen.append(call)

    inputs = BlockInputs(torch.empty(0), returned=returned)
    with _replaced(blocks, lambda block: _Recorder(block, record, returned)):
        for size in (*extra_batch_sizes, 0):
            batches = [input_ids[:size]] if size else list(input_ids.split(batch_size))
            if not size:
                hidden_parts.clear()
            for batch in batches:
                seen.clear()
                model(input_ids=batch.to(device), use_cache=False)
                if len(seen) != len(blocks):
                    raise ModelError(
                        f"{type(model).__name__} ran {len(seen)} of its {len(blocks)} blocks; "
                        "only models that run every block once, in order, can be calibrated."
                    )
                inputs.calls.setdefault(len(batch), list(seen))
    inputs.hidden = torch.cat(hidden_parts)
    return inputs


@torch.no_grad()
def run_after_blocks(
    model: nn.Module, block_list: str, input_ids: torch.Tensor, hidden: torch.Tensor, *, returned: int
) -> None:
    """Run what comes after the blocks, on given outputs of the last one, for those who watch.

    Args:
        input_ids: int64 [batch, length], the tokens the hidden states belong to.
        hidden: output of the last block, [batch, length, features].
        returned: see `BlockInputs`; the blocks themselves need not be there any more.
    """
    blocks = model.get_submodule(block_list)
    assert isinstance(blocks, nn.ModuleList)
    device = next(model.parameters()).device

    def hand_out(_hidden: torch.Tensor, _call: BlockCall) -> None:
        """Blocks between the first and the last are not asked for anything."""

    with _replaced(blocks, lambda block: _Recorder(block, hand_out, returned, hidden.to(device))):
        model(input_ids=input_ids.to(device), use_cache=False)


class _OutputSeen(Exception):
    """Ends a forward pass as soon as the first block has returned."""

    def __init__(self, output: Any) -> None:
        self.output = output


def _things_returned(model: nn.Module, blocks: nn.ModuleList, input_ids: torch.Tensor) -> int:
    def stop(_module: nn.Module, _args: Any, output: Any) -> None:
        raise _OutputSeen(output)

    handle = blocks[0].register_forward_hook(stop)
    try:
        model(input_ids=input_ids, use_cache=False)
    except _OutputSeen as seen:
        return len(seen.output) if isinstance(seen.output, tuple) else 0
    finally:
        handle.remove()
    raise ModelError(f"{type(model).__name__} does not run its blocks.")


@contextmanager
def _replaced(blocks: nn.ModuleList, stand_in: Callable[[nn.Module], nn.Module]) -> Iterator[None]:
    originals = list(blocks)
    for index, block in enumerate(originals):
        blocks[index] = stand_in(block)
    try:
        yield
    finally:
        for index, block in enumerate(originals):
            blocks[index] = block
