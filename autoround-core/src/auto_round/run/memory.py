# SPDX-License-Identifier: Apache-2.0
"""How much memory this process has needed, and how much a run that lets go of blocks will."""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from auto_round.model.structure import without_numbers
from auto_round.run.free_memory import free_memory
from auto_round.sizes import readable_size
from auto_round.tuning.gram import LARGEST_INPUT
from auto_round.tuning.stack import LARGEST, stacks_in

if TYPE_CHECKING:
    from auto_round.plan import Plan
    from auto_round.tuning.options import TuningOptions
    from auto_round.tuning.whole_pass import WholePass

__all__ = ["MemoryNeed", "memory_needed", "peak_memory", "told_short"]

LEARNING = 5
"""Bytes per weight while it is learnt: its offset, float32, and the best code so far."""

GRADIENT = 4
"""Bytes per weight for the gradient of its offset: of one layer or stack at a time, of all where passes add up."""

PASSING = 3
"""Bytes per weight between forward and backward: the weight that was computed with, and what its rounding remembers."""

ROUNDED_AGAIN = 4
"""Bytes per weight of the largest layer where it is rounded again: the weight, or its gradient and parts of others."""

FINISHED = 3
"""Bytes per weight of a block that is done: a code, and what it decodes to."""

TOGETHER = LEARNING + 2 * GRADIENT + PASSING + FINISHED
"""Bytes per weight where all blocks learn together, beside the weight as it was and as it is rounded; what gradients
add up to counts like one."""

EXACT = 8
"""Bytes per weight while channels that can be scaled are looked for: a float32 copy, and what is put back after it."""

OWN = 10
"""Numbers per token and hidden feature more where layers also learn by their own errors: what each gets wrong."""

GRAM = 8
"""Bytes for each pair of a layer's inputs: their products, and those of inputs that differ with those that are."""

SOLVED = 32
"""Bytes for each pair of inputs of the layer that is compensated: its products in float64, factored and inverted."""

PASSES = 24
"""Numbers per token and hidden feature that a block keeps for its backward pass, of the kind that Llama is."""

LOGIT = 5
"""Numbers per token and word where whole models are compared: logits of both, the gradient of their divergence, what it
comes to in the loss; one more where padding is left out."""


@dataclass(frozen=True)
class MemoryNeed:
    """What a run needs, in bytes.

    Attributes:
        process: Python, torch and transformers, as they are now.
        outside: embeddings and what else lies outside the blocks, where it is needed to the end.
        block: the largest block and what is learnt for it, or the layers that are rounded at once; the embeddings
            where they are more.
        activations: of all samples between two blocks, and of one batch within one.
    """

    process: int
    outside: int
    block: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.process + self.outside + self.block + self.activations


def memory_needed(
    plan: Plan,
    options: TuningOptions,
    *,
    flows: bool,
    samples: int,
    seqlen: int,
    features: int,
    workers: int,
    together: WholePass | None = None,
    elsewhere: bool = False,
) -> MemoryNeed:
    """The peak of a run with `low_cpu_mem_usage`, on a CPU; within a tenth where it was measured.

    Args:
        flows: whether calibration data goes through the model.
        samples, seqlen, features: of the calibration data, and of hidden states.
        workers: sets of layers that are rounded at once.
        together: what goes through the whole model at a time in steps of all blocks together, if there are any.
        elsewhere: whether the activations between blocks live on a device of their own. Those on disk count: they are
            in memory for as long as the system has room.
    """
    stored = {layer.name: layer.shape[0] * layer.shape[1] * layer.dtype.itemsize for layer in plan.layers}
    process = peak_memory() or 0
    if not flows:
        sets = sorted((sum(stored[n] for n in layer.shares or (layer.name,)) for layer in plan.quantized), reverse=True)
        # A weight and its codes, and of a layer at a time what they decode to or a format packs them into.
        return MemoryNeed(process, 0, 2 * sum(sets[: workers + 1]), 0)
    weights: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for layer in plan.layers:
        weights[layer.block or ""] += stored[layer.name]
        if layer.quantized and layer.block is not None:
            numbers[layer.block] += layer.shape[0] * layer.shape[1]
    largest = max(plan.blocks, key=lambda block: weights[block])
    learnt = _learnt(plan, options, largest, numbers[largest])
    if options.compensates:
        learnt += _products(plan, largest)
    outside = weights[""] + sum(tensor.nbytes for tensor in plan.kept)
    itemsize = plan.layers[0].dtype.itemsize
    follows = options.enable_quanted_input and (options.iters or options.compensates)
    between = samples * seqlen * features * itemsize * (3 if follows else 2)
    between = 0 if elsewhere else between
    kept = PASSES + OWN * options.improved if options.iters else 8
    within = options.batch_size * seqlen * features * itemsize * kept
    if together is not None:
        everything = sum(weights.values()) + sum(tensor.nbytes for tensor in plan.kept)
        learning = (TOGETHER + itemsize * (1 + options.compensates)) * sum(
            layer.shape[0] * layer.shape[1] for layer in plan.quantized
        )
        # All blocks keep what their backward passes need, and one at a time computes.
        passing = together.tokens * features * itemsize * PASSES
        passing = passing * (1 + len(plan.blocks)) // 2 + together.logits * itemsize * LOGIT
        return MemoryNeed(process, 0, everything + max(learnt, learning), between + max(within, passing))
    if any(layer.block is None for layer in plan.quantized):
        return MemoryNeed(process, outside, weights[largest] + learnt, between + within)
    return MemoryNeed(process, 0, max(outside + weights[largest], weights[largest] + learnt), between + within)


def told_short(need: MemoryNeed, thrifty: MemoryNeed | None) -> str | None:
    """A sentence for a user whose machine has less memory than a run needs; None if it has enough, or none can tell.

    Args:
        need: of the run.
        thrifty: of the same run with `low_memory`; None where that would be another run, or is what it is.
    """
    free = free_memory()
    if free is None or need.total - need.process <= free:
        return None
    told = (
        f"this needs about {readable_size(need.total - need.process)} more memory at its peak and "
        f"{readable_size(free)} are free: it may become very slow or be killed"
    )
    less = "smaller batches, fewer or shorter samples need less" if need.activations else "fewer workers need less"
    if thrifty is not None and thrifty.total < need.total:
        less = f"--low-memory (low_memory=True) needs {readable_size(thrifty.total - thrifty.process)}, and {less}"
    return f"{told}; {less}."


def _products(plan: Plan, block: str) -> int:
    """Bytes for what compensating the layers of a block that are alike, experts most likely, needs of their inputs."""
    pairs: Counter[str] = Counter()
    widest = 0
    for layer in plan.quantized:
        if layer.block == block and layer.shape[1] <= LARGEST_INPUT:
            pairs[without_numbers(layer.name)] += layer.shape[1] ** 2
            widest = max(widest, layer.shape[1])
    return GRAM * max(pairs.values(), default=0) + SOLVED * widest**2


def _learnt(plan: Plan, options: TuningOptions, block: str, weights: int) -> int:
    """Bytes beside the weights of a block while it is worked on."""
    if not options.iters:
        return (EXACT * options.improved + FINISHED) * weights
    adds_up = options.gradient_accumulate_steps > 1
    if options.low_memory:
        largest = max((math.prod(layer.shape) for layer in plan.quantized if layer.block == block), default=0)
        return (LEARNING + GRADIENT * adds_up) * weights + ROUNDED_AGAIN * largest
    return (LEARNING + PASSING + FINISHED) * weights + GRADIENT * (weights if adds_up else _at_once(plan, block))


def _at_once(plan: Plan, block: str) -> int:
    """Weights of the largest layer or stack of a block."""
    stacks: Counter[int] = Counter()
    largest = 0
    for layer in plan.quantized:
        if layer.block == block:
            size = layer.shape[0] * layer.shape[1]
            largest = max(largest, size)
            if stacks_in(layer, block):
                stacks[layer.shape[1]] += size
    return max(largest, min(LARGEST, max(stacks.values(), default=0)))


def peak_memory() -> int | None:
    """Largest resident set of this process so far, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # not a Unix
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
