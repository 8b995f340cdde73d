# SPDX-License-Identifier: Apache-2.0
"""What of a model is written beside its quantized layers: embeddings, norms, what stays, what no class knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from auto_round.model.experts import fused_tensors, whole_experts
from auto_round.model.file_names import as_in_files
from auto_round.model.weights import OUTSIDE, Target

if TYPE_CHECKING:
    from auto_round.model.opened import OpenModel

__all__ = ["other_tensors"]


def other_tensors(model: OpenModel, layers: set[str], *, own_names: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor that is not the weight of one of these layers, as it is stored, but for what has `changed`.

    With files they come from the files, so that nothing a model class ignores is lost; where these have not each of
    the layers under the name it is wanted by, from the model, a part at a time.

    Args:
        own_names: by which layers are wanted: the names of the model's modules, or those that files have.
    """
    tied = {info.name for info in model.structure.linears if info.tied}
    named = {layer: layer if own_names else model.file_names[layer] for layer in layers}
    weights = {f"{name}.weight" for name in named.values()}
    apart = {layer for layer, name in named.items() if f"{name}.weight" not in model.headers} - tied
    whole = {} if own_names else whole_experts(model.model, apart)
    if model.headers and apart <= set().union(*whole.values()):
        weights |= {name for name, target in model.targets.items() if target.name in whole}
        wanted = {name: header for name, header in model.headers.items() if name not in weights}
        for name, tensor in model.reader.read_all(wanted, model.stored, model.dtype):
            target = model.targets.get(name, Target(name, alone=True))
            changed = model.changed.get(target.name) if target.alone else None
            yield name, tensor if changed is None else changed.to(tensor.dtype)
        return
    for part in (OUTSIDE, *model.structure.blocks):
        with model.brought(part):
            yield from _other_tensors_of(model, part, layers, own_names=own_names)


def _other_tensors_of(
    model: OpenModel, part: str, layers: set[str], *, own_names: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    done = {f"{layer}.weight" for layer in layers} | _tied_names(model.model)
    names = {} if own_names else {layer: name for layer, name in model.file_names.items() if name is not None}
    prefix = f"{part}." if part else ""
    module = model.model.get_submodule(part)
    here = {name for name in (*layers, *names) if name.startswith(prefix)}
    inner = {name.removeprefix(prefix) for name in here if name in layers or model.is_expert(name)}
    for name, tensor, covered in fused_tensors(module, inner) if part else ():
        done |= {prefix + name for name in covered}
        found = {prefix + name: tensor}
        yield from found.items() if own_names else as_in_files(model.model, found)
    blocks = tuple(f"{block}." for block in model.structure.blocks)
    for name, tensor in module.state_dict(prefix=prefix).items():
        if name not in done and (part or not name.startswith(blocks)):
            of, _, leaf = name.rpartition(".")
            yield f"{names.get(of, of)}.{leaf}".removeprefix("."), model.changed.get(name, tensor)


def _tied_names(model: nn.Module) -> set[str]:
    """State dict names that repeat a tensor already named before."""
    seen: dict[int, str] = {}
    repeated = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if seen.setdefault(id(tensor), name) != name:
            repeated.add(name)
    return repeated
