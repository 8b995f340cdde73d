# SPDX-License-Identifier: Apache-2.0
"""Rounding without calibration: the layers that share an input, set after set, from their weights alone.

A model need not be there for it. Weights are read one set at a time, several sets are worked on at once, and results
come in order, so that what is written does not depend on who was first.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from auto_round.plan import LayerSpec, Plan
from auto_round.tuning.layer import TunableLinear
from auto_round.tuning.prepared import finish, install, mates_of, prepare
from auto_round.tuning.result import BlockResult

if TYPE_CHECKING:
    from auto_round.model.opened import OpenModel
    from auto_round.tuning.options import TuningOptions

__all__ = ["layer_sets", "round_layers", "round_sets"]


def layer_sets(plan: Plan) -> list[tuple[LayerSpec, ...]]:
    """The quantized layers of a plan, those that decide together in one set, blocks in order."""
    by_name = {layer.name: layer for layer in plan.quantized}
    order = {block: n for n, block in enumerate(plan.blocks)}
    sets = [
        tuple(by_name[name] for name in names)
        for layer in plan.quantized
        for names in [mates_of(layer, by_name)]
        if names[0] == layer.name
    ]
    return sorted(sets, key=lambda s: order.get(s[0].block or "", len(order)))


def round_sets(
    model: OpenModel,
    sets: Sequence[Sequence[LayerSpec]],
    options: TuningOptions,
    device: torch.device,
    *,
    workers: int,
    keep: bool,
) -> Iterator[BlockResult]:
    """Round sets of layers; results come in the order of the sets.

    Args:
        workers: sets that are worked on at once; at most one more is held in memory.
        keep: whether the model is to be there afterwards, with the weights that the codes decode to.
    """
    waiting: deque[tuple[Mapping[str, Any], Future[BlockResult]]] = deque()
    model.get_ready([layer.name for layers in sets for layer in layers], keep=keep)
    # In a forked process torch makes its pool of threads anew when it is first asked for, and fails where two threads
    # ask at once ("Invalid thread pool!", seen with 2.13). So this one asks before there are others.
    threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    with _threads_shared(threads, workers) as pool:
        for layers in sets:
            linears = model.linears([layer.name for layer in layers], keep=keep)
            # In a context like this one: a thread's own knows nothing of `kernels_compiled`.
            rounding = partial(round_layers, layers, linears, options, device, keep=keep)
            round_these = partial(copy_context().run, rounding)
            waiting.append((linears, pool.submit(round_these)))
            del linears
            if len(waiting) > workers:
                yield _done(*waiting.popleft(), keep=keep)
        while waiting:
            yield _done(*waiting.popleft(), keep=keep)


@contextmanager
def _threads_shared(threads: int, workers: int) -> Iterator[ThreadPoolExecutor]:
    """Workers among whom torch's threads are divided: with all of them for each, they would wait for one another."""
    try:
        with ThreadPoolExecutor(
            workers, initializer=torch.set_num_threads, initargs=(max(threads // workers, 1),)
        ) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _done(linears: Mapping[str, Any], future: Future[BlockResult], *, keep: bool) -> BlockResult:
    result = future.result()
    for layer in result.layers if keep else ():
        install(linears[layer.layer.name], layer)
    return result


@torch.no_grad()
def round_layers(
    layers: Sequence[LayerSpec],
    linears: Mapping[str, Any],
    options: TuningOptions,
    device: torch.device,
    observer: Any = None,
    *,
    keep: bool = True,
) -> BlockResult:
    """Quantize layers by themselves, from their weights and what was observed of their inputs, if anything was.

    Args:
        keep: the weights that codes decode to, for a model that will have them.
    """
    start = time.monotonic()
    tunables = {s.name: TunableLinear(linears[s.name], s, linears[s.name].weight.dtype, device) for s in layers}
    prepare(tunables, observer, options)
    if options.e2e_iters:
        for tunable in tunables.values():
            tunable.make_learnable(options.enable_minmax_tuning)
    finished = []
    for tunable in tunables.values():
        result = finish(tunable, observer, latent=options.e2e_iters > 0)
        finished.append(result if keep else result.without_weight())
    return BlockResult(layers[0].block or "", tuple(finished), seconds=time.monotonic() - start)
