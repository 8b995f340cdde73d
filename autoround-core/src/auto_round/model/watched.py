# SPDX-License-Identifier: Apache-2.0
"""What one forward pass tells of linear layers: which receive the same input, and which of them only help to choose.

Runtimes fuse layers that share an input (query, key and value; gate and up), so some data types must give them
something in common. Layers that choose, routers of experts and indexers of attention among them, are a small part of a
model, and what goes through the rest of it hangs on them; runtimes keep most of them at full precision.

The pass needs no weights: on a model without them it runs on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from auto_round.model.structure import without_numbers

__all__ = ["Watched", "watch"]

PROBE_LENGTH = 4


@dataclass(frozen=True)
class Watched:
    """Attributes:
    groups: sets of layers that were called with one and the same tensor, in the order of the model.
    choosers: for each layer that lies in a module that answers with choices, the class of that module.
    """

    groups: tuple[tuple[str, ...], ...]
    choosers: Mapping[str, str]


@torch.no_grad()
def watch(model: Any, layers: Iterable[str]) -> Watched:
    """Run a few tokens through a model and see where they come by.

    A layer that did not run (an expert no token was sent to), or a model that cannot run without its weights, is
    grouped as the layers whose names differ from its own in numbers only; failing that, by the module it lies in.

    Args:
        model: any device, meta included.
        layers: names of the linear layers of interest.
    """
    names = list(layers)
    seen: dict[str, torch.Tensor] = {}
    choosing: dict[str, str] = {}
    handles = [model.get_submodule(name).register_forward_pre_hook(_note_input(seen, name)) for name in names]
    above = dict.fromkeys(module for name in names for module in _above(name))
    handles += [
        model.get_submodule(name).register_forward_hook(_note_choice(choosing, name), with_kwargs=True)
        for name in above
    ]
    try:
        _run(model)
    finally:
        for handle in handles:
            handle.remove()
    return Watched(tuple(_groups(names, seen)), _inside(names, choosing))


def _run(model: Any) -> None:
    device = next(model.parameters()).device
    ids = torch.ones(1, PROBE_LENGTH, dtype=torch.int64, device=device)
    mask = torch.zeros(1, 1, PROBE_LENGTH, PROBE_LENGTH, device=device)
    # Without values no mask can be made; a ready one spares models the attempt.
    for options in ({"attention_mask": mask}, {}):
        try:
            model(input_ids=ids, use_cache=False, **options)
        except (RuntimeError, NotImplementedError, ValueError, IndexError, TypeError):
            continue  # what ran until there is known
        break


def _above(name: str) -> Iterator[str]:
    """Names of the modules that a layer lies in, the innermost first."""
    while name := name.rpartition(".")[0]:
        yield name


def _note_input(seen: dict[str, torch.Tensor], name: str) -> Any:
    def note(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen[name] = args[0]

    return note


def _note_choice(choosing: dict[str, str], name: str) -> Any:
    def note(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], answer: Any) -> None:
        if _is_choice((*args, *options.values()), answer):
            choosing[name] = type(module).__name__

    return note


def _is_choice(given: tuple[Any, ...], answer: Any) -> bool:
    """Whether numbers of what was chosen are answered, and no hidden states that could go on to other layers."""
    told = [part for part in (answer if isinstance(answer, tuple) else (answer,)) if isinstance(part, torch.Tensor)]
    chosen = any(part.dtype in (torch.int32, torch.int64) for part in told)
    return chosen and not _widths(told).intersection(_widths(given))


def _widths(tensors: Iterable[Any]) -> set[int]:
    """Last dimensions of those that are floating point, vectors of parameters not among them."""
    return {x.shape[-1] for x in tensors if isinstance(x, torch.Tensor) and x.dim() > 1 and x.is_floating_point()}


def _groups(names: list[str], seen: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, ...]]:
    # The tensors are alive, so equal identity means the same tensor.
    group_of: dict[str, object] = {name: id(tensor) for name, tensor in seen.items()}
    mates: dict[object, list[str]] = {}
    for name in sorted(group_of):
        mates.setdefault(group_of[name], []).append(name)
    # What to call the group of a layer in a way that holds for layers like it.
    alike = {without_numbers(name): " ".join(map(without_numbers, mates[group])) for name, group in group_of.items()}
    groups: dict[object, list[str]] = {}
    for name in names:
        borrowed = (name.rpartition(".")[0], alike.get(without_numbers(name), ""))
        groups.setdefault(group_of.get(name, borrowed), []).append(name)
    return (tuple(group) for group in groups.values())


def _inside(names: Iterable[str], choosing: Mapping[str, str]) -> dict[str, str]:
    """The layers that lie in modules that choose, or in such as differ from them in numbers only."""
    kinds = {without_numbers(module): kind for module, kind in choosing.items()}
    found = {name: [kinds[m] for m in map(without_numbers, _above(name)) if m in kinds] for name in names}
    return {name: kind[0] for name, kind in found.items() if kind}
