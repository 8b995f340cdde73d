# SPDX-License-Identifier: Apache-2.0
"""Which linear layers receive the same input, found by watching one forward pass.

Runtimes fuse such layers (query, key and value; gate and up), so some data types must give them something in common.
The pass needs no weights: on a model without them it runs on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from auto_round.model.structure import without_numbers

__all__ = ["find_shared_inputs"]

PROBE_LENGTH = 4


@torch.no_grad()
def find_shared_inputs(model: Any, layers: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Sets of layers that were called with one and the same tensor, in the order of the model.

    A layer that did not run (an expert no token was sent to), or a model that cannot run without its weights, is
    grouped as the layers whose names differ from its own in numbers only; failing that, by the module it lies in.

    Args:
        model: any device, meta included.
        layers: names of the linear layers of interest.
    """
    names = list(layers)
    seen: dict[str, torch.Tensor] = {}
    handles = [model.get_submodule(name).register_forward_pre_hook(_note(seen, name)) for name in names]
    device = next(model.parameters()).device
    ids = torch.ones(1, PROBE_LENGTH, dtype=torch.int64, device=device)
    mask = torch.zeros(1, 1, PROBE_LENGTH, PROBE_LENGTH, device=device)
    try:
        # Without values no mask can be made; a ready one spares models the attempt.
        for options in ({"attention_mask": mask}, {}):
            try:
                model(input_ids=ids, use_cache=False, **options)
            except (RuntimeError, NotImplementedError, ValueError, IndexError, TypeError):
                continue  # what ran until there is known
            break
    finally:
        for handle in handles:
            handle.remove()
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
    return tuple(tuple(group) for group in groups.values())


def _note(seen: dict[str, torch.Tensor], name: str) -> Any:
    def note(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen[name] = args[0]

    return note
