# SPDX-License-Identifier: Apache-2.0
"""Finished parts as tensors and plain data, for files and for other processes; and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save

from auto_round.data_type import Codes
from auto_round.plan import LayerSpec, Plan
from auto_round.tuning.latent import Latent
from auto_round.tuning.result import BlockResult, CacheResult, LayerResult

__all__ = ["from_bytes", "from_record", "to_bytes", "to_record"]

_FACTS = ("name", "loss_before", "loss_after", "kept_step", "seconds")
_LISTS = ("unseen", "scarce")


def to_record(result: BlockResult) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Plain data that JSON holds, and tensors by name."""
    tensors: dict[str, torch.Tensor] = {}
    layers = []
    for n, layer in enumerate(result.layers):
        told: dict[str, Any] = {"name": layer.layer.name, "tokens": layer.tokens, "error": layer.error}
        if layer.codes is None:
            tensors[f"{n}.weight"] = layer.weight
        else:
            dtype = str(layer.codes.dtype).removeprefix("torch.")
            told |= {"dtype": dtype, "shape": list(layer.codes.shape)}
            tensors |= {f"{n}.codes.{name}": t for name, t in layer.codes.tensors.items()}
        if layer.importance is not None:
            tensors[f"{n}.importance"] = layer.importance
        tensors |= {f"{n}.frozen.{name}": t for name, t in layer.frozen.items()}
        if layer.latent is not None:
            told["latent"], kept = _latent_record(layer.latent)
            tensors |= {f"{n}.latent.{name}": t for name, t in kept.items()}
        layers.append(told)
    for n, cache in enumerate(result.caches):
        tensors |= {f"cache.{n}.key.{name}": t for name, t in cache.key.items()}
        tensors |= {f"cache.{n}.value.{name}": t for name, t in cache.value.items()}
    tensors |= {f"changed.{name}": t for name, t in result.changed.items()}
    facts = {name: getattr(result, name) for name in _FACTS}
    facts |= {name: list(getattr(result, name)) for name in _LISTS}
    facts |= {"layers": layers, "caches": [cache.module for cache in result.caches]}
    return facts, _apart(tensors)


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors on the CPU, contiguous, and copies of those that share memory, which no file could keep."""
    found, seen = {}, set()
    for name, tensor in tensors.items():
        stored = tensor.detach().cpu().contiguous()
        place = stored.untyped_storage().data_ptr()
        found[name] = stored.clone() if place in seen else stored
        seen.add(place)
    return found


def from_record(facts: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], plan: Plan) -> BlockResult:
    """The result again."""
    planned = {layer.name: layer for layer in plan.quantized}
    layers = [_layer(planned[told["name"]], told, _below(tensors, f"{n}.")) for n, told in enumerate(facts["layers"])]
    caches = [
        CacheResult(module, _below(tensors, f"cache.{n}.key."), _below(tensors, f"cache.{n}.value."))
        for n, module in enumerate(facts["caches"])
    ]
    told: dict[str, Any] = {name: facts[name] for name in _FACTS}
    told |= {name: tuple(facts[name]) for name in _LISTS}
    return BlockResult(layers=tuple(layers), caches=tuple(caches), changed=_below(tensors, "changed."), **told)


def to_bytes(result: BlockResult) -> bytes:
    """Everything in one piece, for another process."""
    facts, tensors = to_record(result)
    packed: bytes = save(tensors or {"": torch.empty(0)}, {"facts": json.dumps(facts)})
    return packed


def from_bytes(data: bytes, plan: Plan) -> BlockResult:
    """The result that another process packed."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return from_record(json.loads(header["__metadata__"]["facts"]), load(data), plan)


def _layer(layer: LayerSpec, told: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> LayerResult:
    codes, weight = None, tensors.get("weight")
    if weight is None:
        assert layer.data_type is not None
        stored = _below(tensors, "codes.")
        dtype, shape = getattr(torch, told["dtype"]), tuple(told["shape"])
        codes = Codes(layer.data_type.name, layer.scheme, shape, dtype, stored)
    frozen = _below(tensors, "frozen.")
    latent = _latent(told["latent"], _below(tensors, "latent.")) if "latent" in told else None
    return LayerResult(layer, codes, weight, frozen, tensors.get("importance"), told["tokens"], told["error"], latent)


def _latent_record(latent: Latent) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    fixed: dict[str, Any] = {}
    tensors = {"original": latent.original}
    if latent.weight is not latent.original:
        tensors["weight"] = latent.weight
    for name, offer in latent.fixed.items():
        if isinstance(offer, torch.Tensor):
            tensors[f"fixed.{name}"] = offer
        else:
            fixed[name] = str(offer) if isinstance(offer, torch.dtype) else offer
    tensors |= {f"learnt.{name}": t for name, t in latent.learnt.items()}
    return {"fixed": fixed, "bounds": dict(latent.bounds)}, tensors


def _latent(told: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Latent:
    fixed = {name: _offer(value) for name, value in told["fixed"].items()}
    bounds = {name: None if ends is None else (ends[0], ends[1]) for name, ends in told["bounds"].items()}
    original = tensors["original"]
    weight = tensors.get("weight", original)
    return Latent(original, weight, fixed | _below(tensors, "fixed."), _below(tensors, "learnt."), bounds)


def _offer(value: Any) -> Any:
    is_dtype = isinstance(value, str) and value.startswith("torch.")
    return getattr(torch, value.removeprefix("torch.")) if is_dtype else value


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
