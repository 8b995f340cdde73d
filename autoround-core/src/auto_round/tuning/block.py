# SPDX-License-Identifier: Apache-2.0
"""One block: observe, tune, encode, and go on with what the quantized block answers."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from auto_round.calibration.cache import CacheObserver, find_caches
from auto_round.calibration.observer import InputObserver
from auto_round.plan import CachePlan, LayerSpec
from auto_round.tuning.chains import Chains, Runner
from auto_round.tuning.channels import equalise_block
from auto_round.tuning.clipping import clip_inputs
from auto_round.tuning.gram import compensate_block
from auto_round.tuning.layer import TunableLinear
from auto_round.tuning.prepared import finish, in_place, install, observer_of, prepare
from auto_round.tuning.result import BlockResult, CacheResult
from auto_round.tuning.signround import FixedSlice, Samples, tune_block
from auto_round.tuning.stack import renewed, stacked

if TYPE_CHECKING:
    from auto_round.model.opened import OpenModel
    from auto_round.tuning.options import TuningOptions

__all__ = ["quantize_block"]

SCARCE = 64
"""Tokens below which a layer that others of its block see more of is not tuned."""


def quantize_block(
    model: OpenModel,
    name: str,
    layers: Sequence[LayerSpec],
    options: TuningOptions,
    chains: Chains,
    device: torch.device,
    on_step: Callable[[], None],
    cache: CachePlan | None,
) -> BlockResult:
    """Quantize the layers of one block so that the block answers as before; takes the chains to the next one."""
    start, index = time.monotonic(), model.structure.blocks.index(name)
    stored = model.model.get_submodule(name)
    dtype = _compute_dtype(stored, options, device)
    block = _working_copy(stored, dtype, device)
    runner = Runner(block, index, chains, device, dtype)
    inner = {layer.name: layer.name.removeprefix(name + ".") for layer in layers}
    linears = {layer.name: block.get_submodule(inner[layer.name]) for layer in layers}
    changed = {}
    if options.improved:
        changed = equalise_block(
            model, name, block, layers, options, chains, device, dtype, keep_values=cache is not None
        )
    observer = observer_of(linears, layers, options)
    kept = CacheObserver(find_caches(block) if cache is not None else {})
    with observer.watching(), kept.watching():
        targets = runner.over(chains, chains.reference, (observer, kept))

    originals = {s.name: stored.get_submodule(inner[s.name]) for s in layers}
    tunables = {s.name: TunableLinear(originals[s.name], s, dtype, device) for s in layers}
    prepare(tunables, observer, options)
    if options.improved:
        clip_inputs(tunables, observer, chains.ranks)
    if options.compensates:
        compensate_block(linears, tunables, runner, chains, options)
    scarce = _scarce(linears, observer) if options.iters or options.e2e_iters else ()
    learning = [tunable for n, tunable in tunables.items() if n not in scarce]
    outcome = None
    if options.iters and learning:
        own = {inner[n]: linear for n, linear in linears.items()}
        with in_place(block, {inner[n]: tunable for n, tunable in tunables.items()}, own):
            inputs = chains.quantized if options.enable_quanted_input else chains.reference
            samples = Samples(inputs, targets, chains.mask, runner, chains.ranks)
            generator = torch.Generator().manual_seed(options.seed + index)
            rival, compensated = None, {}
            if options.compensates:
                rival = FixedSlice(samples, chains.batch_size, device).loss()
                for tunable in learning:
                    tunable.keep()
                    if options.e2e_iters:
                        compensated[tunable] = tunable.weight, tunable.wanted
                    tunable.start_from(tunable.original, tunable.original)
            units = learning if options.low_memory else stacked(learning, name)
            with renewed(block, units), torch.enable_grad():
                trust = options.trust(min(tunable.layer.scheme.bits for tunable in learning))
                outcome = tune_block(
                    units, samples, options, chains.batch_size, generator, device, on_step, rival, trust
                )
            for tunable, (weight, wanted) in compensated.items() if outcome.rival_stays else ():
                tunable.start_from(weight, wanted)
                tunable.let_go()
    finished = []
    for layer_name, tunable in tunables.items():
        if options.e2e_iters and layer_name not in scarce and not tunable.learnt:
            tunable.make_learnable(options.enable_minmax_tuning)
        result = finish(tunable, observer, latent=options.e2e_iters > 0)
        tunable.let_go()
        for linear in {id(m): m for m in (linears[layer_name], originals[layer_name])}.values():
            install(linear, result)
        finished.append(result)
    # The quantized chain feeds nothing unless something is learnt from it in a later block.
    if (
        (options.iters or options.compensates)
        and options.enable_quanted_input
        and index + 1 < len(model.structure.blocks)
    ):
        chains.quantized = runner.over(chains, chains.quantized)
    else:
        chains.quantized = targets
    chains.reference = targets
    done = BlockResult(
        name,
        tuple(finished),
        unseen=tuple(n for n in linears if n not in observer.tokens),
        scarce=tuple(n for n in scarce if n in observer.tokens),
        caches=() if cache is None else _caches(cache, name, kept),
        changed=changed,
    )
    if outcome is not None:
        before, after, step = outcome.loss_before, outcome.loss_after, outcome.kept_step
        done = dataclasses.replace(done, loss_before=before, loss_after=after, kept_step=step)
    return dataclasses.replace(done, seconds=time.monotonic() - start)


def _scarce(linears: Mapping[str, nn.Module], observer: InputObserver) -> tuple[str, ...]:
    """Layers that few tokens reach while others of the block see many: experts."""
    most = max((observer.tokens.get(name, 0) for name in linears), default=0)
    few = min(SCARCE, most)
    return tuple(name for name in linears if observer.tokens.get(name, 0) < few)


def _caches(cache: CachePlan, block: str, observer: CacheObserver) -> tuple[CacheResult, ...]:
    """Scales for what the attention layers of a block keep."""
    frozen = {key: cache.data_type.freeze(*ends, cache.scheme) for key, ends in observer.ranges.items()}
    names = dict.fromkeys(name for name, _ in frozen)
    return tuple(CacheResult(f"{block}.{name}", frozen[name, "k"], frozen[name, "v"]) for name in names)


def _compute_dtype(block: nn.Module, options: TuningOptions, device: torch.device) -> torch.dtype:
    if options.compute_dtype is not None:
        return options.compute_dtype
    dtype = next(p.dtype for p in block.parameters() if p.is_floating_point())
    return torch.float32 if dtype == torch.float16 and device.type == "cpu" else dtype


def _working_copy(block: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The block itself where it can be worked on in place, otherwise a copy on the device in the dtype."""
    tensors = [*block.parameters(), *block.buffers()]
    if all(t.device == device and (not t.is_floating_point() or t.dtype == dtype) for t in tensors):
        return block
    return copy.deepcopy(block).to(device, dtype)
