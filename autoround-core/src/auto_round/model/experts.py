# SPDX-License-Identifier: Apache-2.0
"""Experts that a model keeps as one tensor for all, taken apart into linear layers, and put together again.

transformers keeps the routed experts of a block in parameters of three dimensions. Everything here works on linear
layers: they are tuned, packed and loaded one by one, and checkpoints store most models' experts so. The linear layers
are views of the parameters; nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from auto_round.names import experts_above

__all__ = ["SplitExperts", "experts_of", "fused_tensors", "split_experts", "whole_experts"]

MARKS = ("num_experts", "is_transposed", "is_concatenated", "has_bias", "has_gate")
"""What transformers notes on modules that keep their experts fused."""


class SplitExperts(nn.Module):
    """Routed experts as linear layers: `0.gate_proj`, `0.up_proj`, `0.down_proj`, `1.gate_proj`, ...

    Gate and up stay one layer, `gate_up_proj`, where the model keeps their rows interleaved; experts without a gate
    have `up_proj` alone.
    """

    def __init__(self, fused: Any) -> None:
        """Take a module apart; its parameters live on in the layers, and it keeps its gating function."""
        super().__init__()
        self.num_experts: int = fused.num_experts
        self.fused_names: tuple[str, ...] = tuple(name for name, _ in fused.named_parameters())
        self._transposed: bool = fused.is_transposed
        parts = _parts(fused)
        for index in range(self.num_experts):
            expert = nn.Module()
            for name, (source, rows) in parts.items():
                setattr(expert, name, _linear(fused, source, index, rows))
            self.add_module(str(index), expert)
        self._called = {name: name for name in parts}
        for name in self.fused_names:
            setattr(fused, name, None)
        # Past nn.Module's bookkeeping: not a child, or its name would stand in those of tensors.
        self.__dict__["_gating"] = fused

    def rename(self, names: Mapping[str, str]) -> None:
        """Call the layers of every expert otherwise: `w1`, `w3` and `w2`, say, where files have such names."""
        for expert in self.children():
            layers = {names.get(name, name): layer for name, layer in expert.named_children()}
            expert._modules.clear()  # noqa: SLF001 - in the order they had
            for name, layer in layers.items():
                expert.add_module(name, layer)
        self._called = {part: names.get(name, name) for part, name in self._called.items()}

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Each token through the experts it was sent to.

        Args:
            hidden_states: [tokens, features].
            top_k_index, top_k_weights: the experts of each token and their shares, [tokens, experts per token].
        """
        experts = [self.get_submodule(str(index)) for index in range(self.num_experts)]
        if hidden_states.is_meta:
            # There are no values to route by: every expert is shown all tokens, so that every layer is seen to run; a
            # copy of its own, or they would be seen to share it.
            answers = [self._run(expert, hidden_states.clone()) * top_k_weights[:, :1] for expert in experts]
            return torch.stack(answers).sum(0).to(hidden_states.dtype)
        # Each token once for each of its experts, sorted by expert, and back. A gather for each expert by itself would
        # have a gradient of the size of all tokens, nearly all of it zero.
        tokens, features = hidden_states.shape
        order = top_k_index.flatten().argsort(stable=True)
        # One number more than there are experts means "no expert".
        counts = top_k_index.flatten().bincount(minlength=self.num_experts + 1).tolist()
        parts = hidden_states[:, None].expand(-1, top_k_index.shape[-1], -1).reshape(-1, features)[order].split(counts)
        answers = [self._run(e, x) if len(x) else x for e, x in zip(experts, parts[:-1], strict=True)]
        each = torch.cat([*answers, torch.zeros_like(parts[-1])])[order.argsort()].view(tokens, -1, features)
        return (each * top_k_weights[..., None]).sum(1).to(hidden_states.dtype)

    def _run(self, expert: Any, x: torch.Tensor) -> torch.Tensor:
        gating = self.__dict__["_gating"]
        part = {part: getattr(expert, name) for part, name in self._called.items()}
        if not gating.has_gate:
            x = gating.act_fn(part["up_proj"](x))
        elif "gate_up_proj" in part:
            x = gating._apply_gate(part["gate_up_proj"](x))  # noqa: SLF001 - the model's own way to say it
        else:
            x = gating._apply_gate(torch.cat([part["gate_proj"](x), part["up_proj"](x)], -1))  # noqa: SLF001
        result: torch.Tensor = part["down_proj"](x)
        return result

    def layers(self) -> list[str]:
        """Names of the linear layers below this module, expert by expert."""
        return [name for name, part in self.named_modules() if isinstance(part, nn.Linear)]

    def layers_of(self, name: str) -> list[list[str]]:
        """The layers that a parameter of `fused_names` consists of, for each expert."""
        leaf = name.removesuffix("_bias")
        parts = (leaf,) if leaf in self._called else ("gate_proj", "up_proj")
        return [[f"{index}.{self._called[part]}" for part in parts] for index in range(self.num_experts)]

    def joined(self, name: str, weights: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """A parameter as the model kept it: one of `fused_names`, [experts, ...].

        Args:
            weights: to be taken instead of those that layers have, by the layers' names.
        """
        attribute = "bias" if name.endswith("_bias") else "weight"
        instead = (weights or {}) if attribute == "weight" else {}
        each = []
        for layers in self.layers_of(name):
            tensors = [instead[n] if n in instead else getattr(self.get_submodule(n), attribute) for n in layers]
            each.append(torch.cat([tensor.detach() for tensor in tensors]) if len(layers) > 1 else tensors[0].detach())
        stacked = torch.stack(each)
        return stacked.transpose(1, 2).contiguous() if self._transposed and attribute == "weight" else stacked


def split_experts(model: nn.Module, wanted: Callable[[Sequence[str]], bool] = bool) -> None:
    """Put `SplitExperts` in the place of modules that keep their experts fused, on any device, meta included.

    Args:
        wanted: told the names of the linear layers of such a module, whether to take it apart; all, if not given.
    """
    for name, module in list(model.named_modules()):
        if not _is_fused(module):
            continue
        parts = _parts(module)
        if wanted([f"{name}.{expert}.{part}" for expert in range(module.num_experts) for part in parts]):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, SplitExperts(module))


def fused_tensors(model: nn.Module, layers: set[str]) -> Iterator[tuple[str, torch.Tensor, set[str]]]:
    """Experts that can be written as the model keeps them, because none of their layers is among some.

    Yields:
        name of the parameter, the parameter, and the names of the state dict that it stands for.
    """
    for name, module in model.named_modules():
        if isinstance(module, SplitExperts) and not any(layer.startswith(f"{name}.") for layer in layers):
            covered = {f"{name}.{inner}" for inner in module.state_dict()}
            for parameter in module.fused_names:
                yield f"{name}.{parameter}", module.joined(parameter), covered


def whole_experts(model: nn.Module, layers: set[str]) -> dict[str, set[str]]:
    """The parameters of experts that some layers are, all of them together, and which are; none of experts with biases.

    Args:
        layers: names of linear layers.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, SplitExperts) and not any(
            parameter.endswith("_bias") for parameter in module.fused_names
        ):
            for parameter in module.fused_names:
                parts = {f"{name}.{layer}" for expert in module.layers_of(parameter) for layer in expert}
                if parts <= layers:
                    found[f"{name}.{parameter}"] = parts
    return found


def experts_of(model: nn.Module, layer: str) -> SplitExperts | None:
    """The routed experts that a linear layer belongs to, if it belongs to any."""
    name = experts_above(layer)
    module = model.get_submodule(name) if name else None
    return module if isinstance(module, SplitExperts) else None


def _is_fused(module: Any) -> bool:
    if not all(hasattr(module, mark) for mark in MARKS) or getattr(module, "has_post_expert_norm", False):
        return False
    down = getattr(module, "down_proj", None)
    return isinstance(down, nn.Parameter) and down.dim() == 3


def _parts(fused: Any) -> dict[str, tuple[str, slice]]:
    """The layers of one expert: name to the parameter it lies in and which of its rows."""
    if not fused.has_gate:
        return {"up_proj": ("up_proj", slice(None)), "down_proj": ("down_proj", slice(None))}
    if not fused.is_concatenated:
        return {"gate_up_proj": ("gate_up_proj", slice(None)), "down_proj": ("down_proj", slice(None))}
    half = fused.gate_up_proj.shape[2 if fused.is_transposed else 1] // 2
    return {
        "gate_proj": ("gate_up_proj", slice(half)),
        "up_proj": ("gate_up_proj", slice(half, None)),
        "down_proj": ("down_proj", slice(None)),
    }


def _linear(fused: Any, source: str, index: int, rows: slice) -> nn.Linear:
    parameter = getattr(fused, source).detach()[index]
    weight = (parameter.T if fused.is_transposed else parameter)[rows]
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=fused.has_bias, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if fused.has_bias:
        linear.bias = nn.Parameter(getattr(fused, f"{source}_bias").detach()[index][rows], requires_grad=False)
    return linear
