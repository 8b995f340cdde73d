# SPDX-License-Identifier: Apache-2.0
"""What files call the layers of a model.

transformers renames, stacks and joins the tensors of many models when it loads them. Other runtimes build modules of
their own after the files, so who writes for them has to write what transformers would write back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from auto_round.model.experts import SplitExperts
from auto_round.names import prefix_change

if TYPE_CHECKING:
    from auto_round.model.weights import Target

__all__ = ["as_in_files", "expert_layers_in_files", "file_names", "read_apart"]


def file_names(model: Any, layers: Iterable[str], targets: Mapping[str, Target] | None = None) -> dict[str, str | None]:
    """The names of layers in files, None for those that lie in one tensor with others there.

    Args:
        model: its experts taken apart; weights may be on the meta device.
        layers: names of modules with a weight.
        targets: what becomes of each stored tensor, where there are files; without, transformers tells what it would
            write.
    """
    found: dict[str, str | None] = {layer: layer for layer in layers}
    if targets is None:
        found |= _renamed(model, found)
    else:
        weights = {target.name: name for name, target in targets.items() if target.alone}
        stored = {layer: weights.get(f"{layer}.weight", f"{layer}.weight") for layer in found}
        found |= {layer: name.removesuffix(".weight") for layer, name in stored.items()}
    before, instead = prefix_change(found)
    for layer, name in _experts(model, _all_experts(model)):
        if targets is None:
            found[layer] = name
        else:
            known = [n for n in (name, layer) if n]
            known += [instead + n.removeprefix(before) for n in known if n.startswith(before)]
            found[layer] = next((n for n in known if f"{n}.weight" in targets), None)
    return found


def expert_layers_in_files(model: Any) -> dict[str, str]:
    """What files call the layers of an expert, `gate_proj` and the like, where that is something else."""
    named = ((_leaf(layer), name and _leaf(name)) for layer, name in _experts(model, _all_experts(model)[:1]))
    return {layer: name for layer, name in named if name and name != layer}


def read_apart(model: Any) -> bool:
    """Whether transformers finds experts in files that have them one by one, whatever those of this model have."""
    return any(name for _, name in _experts(model, _all_experts(model)[:1]))


def as_in_files(model: Any, tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters of a model, by name, as transformers writes them: others' names, joined or taken apart."""
    from transformers.core_model_loading import revert_weight_conversion

    yield from revert_weight_conversion(model, tensors).items()


def _renamed(model: Any, layers: Iterable[str]) -> dict[str, str]:
    """Names as transformers writes them, of those layers whose tensors it writes as they are."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, apply_converters, apply_renamings

    steps = [step.reverse_transform() for step in reversed(_steps(model))]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    alone = [layer for layer in layers if apply_converters(f"{layer}.weight", converters)[1] is None]
    names = {layer: apply_renamings(f"{layer}.weight", renamings) for layer in alone}
    return {layer: name.removesuffix(".weight") for layer, name in names.items() if name.endswith(".weight")}


def _steps(model: Any) -> list[Any]:
    """What transformers did to files of this model, or would do to such as it writes."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange

    done: list[Any] | None = getattr(model, "_weight_conversions", None)
    if done is not None:
        return done
    return [s for s in get_model_conversion_mapping(model, add_legacy=False) if not isinstance(s, PrefixChange)]


def _all_experts(model: Any) -> list[tuple[str, SplitExperts]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, SplitExperts)]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _experts(model: Any, experts: Iterable[tuple[str, SplitExperts]]) -> Iterator[tuple[str, str | None]]:
    """Each layer of routed experts and its name in files, or None.

    Found by having transformers write experts whose weights are small and of one number each: whatever it does to
    names and tensors, the number tells which layer a tensor is.
    """
    layers: list[str] = []
    fused: dict[str, torch.Tensor] = {}
    for name, module in experts:
        inner = module.layers()
        numbers = {layer: torch.full((2, 2), float(len(layers) + n), device="cpu") for n, layer in enumerate(inner)}
        layers += [f"{name}.{layer}" for layer in inner]
        weights = (parameter for parameter in module.fused_names if not parameter.endswith("_bias"))
        fused |= {f"{name}.{parameter}": module.joined(parameter, numbers) for parameter in weights}
    if not fused:
        return
    written: dict[int, str] = {}
    for name, tensor in as_in_files(model, fused):
        if name.endswith(".weight") and tensor.numel() == 4:
            written[int(tensor.flatten()[0])] = name.removesuffix(".weight")
    for number, layer in enumerate(layers):
        yield layer, written.get(number)
