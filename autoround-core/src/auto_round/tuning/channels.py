# SPDX-License-Identifier: Apache-2.0
"""Equal channels for one block of a model: what may change, what is changed, and what files must be told of it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from auto_round.calibration.cache import find_caches
from auto_round.calibration.observer import InputObserver
from auto_round.model.weights import Target
from auto_round.plan import LayerSpec
from auto_round.tuning.chains import PROBE_SAMPLES, Chains, Runner
from auto_round.tuning.equalise import Trial, equalise
from auto_round.tuning.partial_pass import PartialPass
from auto_round.tuning.places import find_rescalings

if TYPE_CHECKING:
    from auto_round.model.opened import OpenModel
    from auto_round.tuning.options import TuningOptions

__all__ = ["equalise_block"]

BATCHES = 2
"""Batches a choice is judged by, the first and others spread over the rest."""


def equalise_block(
    model: OpenModel,
    name: str,
    block: nn.Module,
    layers: Sequence[LayerSpec],
    options: TuningOptions,
    chains: Chains,
    device: torch.device,
    dtype: torch.dtype,
    *,
    keep_values: bool,
) -> dict[str, torch.Tensor]:
    """Scale channels of a block where that lowers the error of its quantized layers.

    Args:
        block: its working copy, or the model's own.
        keep_values: leave what attention keeps of a token as it is, because it is quantized too.

    Returns:
        every parameter that is different now, but for weights of the layers that will be quantized; by full name.
    """
    stored, index = model.model.get_submodule(name), model.structure.blocks.index(name)
    quantized = {layer.name.removeprefix(f"{name}.") for layer in layers}
    caches = tuple(f"{cache}." for cache in find_caches(block)) if keep_values else ()
    fixed = _fixed(model, name, stored, quantized)
    exact, few = copy.deepcopy(block).to(device, torch.float32), chains.reference[:PROBE_SAMPLES]
    probe = Runner(exact, index, chains, device, torch.float32)
    places = find_rescalings(
        exact, lambda: probe(few), lambda module, part: (module, part) in fixed or module.startswith(caches)
    )
    if not places:
        return {}
    runner = Runner(block, index, chains, device, dtype)
    size = chains.batch_size
    batches = [slice(n, n + size) for n in range(0, len(chains.reference) - size + 1, size)]
    batches = batches[:: max(1, len(batches) // BATCHES)][:BATCHES]
    targets = [runner(chains.reference[part]) for part in batches]

    passes: dict[frozenset[nn.Module], PartialPass] = {}

    def watch(observer: InputObserver) -> None:
        watched = frozenset(observer.layers.values())
        run = passes.setdefault(watched, PartialPass(runner, watched))
        with observer.watching():
            for part in batches[:1]:
                observer.mask = None if chains.mask is None else chains.mask[part].to(device)
                run(chains.reference[part])

    def loss() -> float:
        total = 0.0
        for part, target in zip(batches, targets, strict=True):
            error = (runner(chains.quantized[part]).float() - target.float()).square().mean(-1)
            mask = torch.ones_like(error) if chains.mask is None else chains.mask[part].to(device)
            total += ((error * mask).sum() / mask.sum().clamp(min=1)).item()
        return total

    specs = {layer.name.removeprefix(f"{name}."): layer for layer in layers}
    blocks = (block,) if stored is block else (block, stored)
    changed: dict[str, torch.Tensor] = {}
    for place, _ in equalise(places, Trial(blocks, specs, watch, loss, options, device, dtype)):
        for module in (place.writer, *place.readers):
            for parameter in _parameters_behind(module, module == place.writer, stored, quantized):
                changed[f"{name}.{module}.{parameter}"] = stored.get_parameter(f"{module}.{parameter}").detach()
    return changed


def _parameters_behind(module: str, writes: bool, block: nn.Module, quantized: set[str]) -> list[str]:
    """The parameters of a module that are scaled with its rows or columns, but for a weight that is stored as codes."""
    names = [name for name, _ in block.get_submodule(module).named_parameters(recurse=False)]
    return [n for n in names if (writes or n == "weight") and not (n == "weight" and module in quantized)]


def _fixed(model: OpenModel, name: str, block: nn.Module, quantized: set[str]) -> set[tuple[str, str]]:
    """Modules whose rows, or columns, must stay: something else has their parameters, or files hold them changed."""
    uses = Counter(id(p) for _, p in model.model.named_parameters(remove_duplicate=False))
    found = set()
    for module_name, module in block.named_modules():
        for part in ("rows", "columns"):
            behind = _parameters_behind(module_name, part == "rows", block, quantized) if module_name else []
            as_stored = (f"{name}.{module_name}.{parameter}" for parameter in behind)
            alone = model.directory is None or all(model.targets.get(n) == Target(n, alone=True) for n in as_stored)
            if not alone or any(uses[id(p)] > 1 for p in module.parameters(recurse=False)):
                found.add((module_name, part))
    return found
