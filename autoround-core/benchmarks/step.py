# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: INP001 - a script, no package
"""How long a tuning step takes, as a ratio to the floor: the block's plain forward and backward, weights as leaves.

usage: step.py [--model DIR | --shape HIDDENxINTERMEDIATExHEADSxKV_HEADS] [--batch 8x256] [--steps 24] [--compile]
    SCHEME...

The real engine tunes the model's first block, and after every step of it the floor takes one: both see the same machine
in the same second. Printed is the middle of all steps' times, and of the ratios step by step. --compile: the engine
with `enable_torch_compile`, once its kernels are compiled.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from contextlib import suppress
from typing import Any

import torch
from timing import clock
from torch import nn

from auto_round import AutoRound
from auto_round.calibration import CalibrationTokens
from auto_round.calibration.store import ActivationStore
from auto_round.data_type.kernels import kernels_compiled
from auto_round.model.opened import open_model, wrap_model
from auto_round.run.allocator import ask_for_large_pages
from auto_round.run.ranks import Ranks
from auto_round.tuning.block import quantize_block
from auto_round.tuning.chains import Chains, Runner

LONG = 1000
"""Steps the engine is told to take: so many that it looks at no fixed slice while some are timed."""


class Enough(Exception):
    """Enough steps were timed."""


class Floor:
    """A block that learns its weights themselves, as long as another one's step takes."""

    def __init__(self, block: nn.Module, chains: Chains, batch: int, steps: int) -> None:
        self._wanted = steps
        self._block = copy.deepcopy(block).requires_grad_(True)
        dtype = next(block.parameters()).dtype
        self._run = Runner(self._block, 0, chains, torch.device("cpu"), dtype)
        self._input = chains.reference[:batch].clone()
        self._target = chains.reference[:batch].float()
        self.steps: list[float] = []
        self.floors: list[float] = []
        self._since = 0.0

    def take(self) -> None:
        """Called after a step: notes how long it took, and takes one."""
        now = clock()
        if self._since:
            self.steps.append(now - self._since)
        (self._run(self._input).float() - self._target).square_().mean().mul(1000).backward()
        for parameter in self._block.parameters():
            parameter.grad = None
        self._since = clock()
        if len(self.steps) > len(self.floors):
            self.floors.append(self._since - now)
        if len(self.floors) == self._wanted:
            raise Enough


def model_of(shape: str) -> nn.Module:
    """A random Llama of one block."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, intermediate, heads, kv_heads = map(int, shape.split("x"))
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_attention_heads=heads, num_key_value_heads=kv_heads,
        num_hidden_layers=1, vocab_size=1024, max_position_embeddings=4096, dtype=torch.bfloat16,
    )  # fmt: skip
    model: nn.Module = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    return model


def measure(
    source: Any, scheme: str, batch: int, length: int, steps: int, *, compiled: bool
) -> tuple[float, float, float]:
    """Milliseconds of the floor and of a step, and the ratio."""
    rounder = AutoRound(source, scheme=scheme, iters=LONG, batch_size=batch, device_map="cpu", verbose=False)
    plan = rounder.plan()
    opened = wrap_model(source) if isinstance(source, nn.Module) else open_model(source)
    ids = torch.randint(0, 1000, (batch, length), generator=torch.Generator().manual_seed(0))
    tokens = CalibrationTokens(ids, torch.ones_like(ids, dtype=torch.bool), "random")
    name = plan.blocks[0]
    with torch.no_grad():
        opened.load()
        chains = Chains.begin(opened, rounder.options, tokens, ActivationStore(), Ranks())
        floor = Floor(opened.model.get_submodule(name), chains, batch, steps)
        layers = [layer for layer in plan.quantized if layer.block == name]

        def take() -> None:
            with torch.enable_grad():
                floor.take()

        with suppress(Enough), kernels_compiled(wanted=compiled):
            quantize_block(opened, name, layers, rounder.options, chains, torch.device("cpu"), take, None)
    ratios = [step / plain for step, plain in zip(floor.steps, floor.floors, strict=True)]
    return (
        1000 * statistics.median(floor.floors),
        1000 * statistics.median(floor.steps),
        statistics.median(ratios),
    )


def main() -> None:
    """Measure, and print a line per scheme."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="autoround-core/demo/models/pep-llama-7m")
    parser.add_argument("--shape")
    parser.add_argument("--batch", default="8x256")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("schemes", nargs="+")
    args = parser.parse_args()
    ask_for_large_pages()
    batch, length = map(int, args.batch.split("x"))
    how = ", compiled" if args.compile else ""
    print(f"{args.shape or args.model}, {args.batch} tokens, {torch.get_num_threads()} threads{how}")
    for scheme in args.schemes:
        source = model_of(args.shape) if args.shape else args.model
        plain, step, ratio = measure(source, scheme, batch, length, args.steps, compiled=args.compile)
        print(f"  {scheme:14} floor {plain:9.1f} ms  step {step:9.1f} ms  ratio {ratio:5.2f}", flush=True)


if __name__ == "__main__":
    main()
