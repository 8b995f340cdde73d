# SPDX-License-Identifier: Apache-2.0
"""What transformers' AutoRound quantizer calls while it loads a checkpoint: swap in packed layers, then say so.

The names `convert_hf_model`, `infer_target_device` and `post_init` are transformers' own contract.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from auto_round.errors import AutoRoundError, ModelError, PluginError
from auto_round.export.packing import Packing
from auto_round.inference.packed_linear import BACKENDS, PackedLinear
from auto_round.model.experts import SplitExperts, experts_of, split_experts
from auto_round.model.file_names import expert_layers_in_files
from auto_round.model.structure import LinearInfo, find_structure
from auto_round.names import and_more
from auto_round.plugins import Registry, default_registry
from auto_round.schemes import FULL_PRECISION_BITS, QuantizationScheme

__all__ = ["convert_hf_model", "infer_target_device", "post_init"]

_SCHEME_FIELDS = frozenset(QuantizationScheme.__dataclass_fields__)
_REGEX_ONLY = re.compile(r"[\\^$()|+*?\[{]")


def convert_hf_model(
    model: nn.Module, target_device: str = "cpu", registry: Registry | None = None
) -> tuple[nn.Module, list[str]]:
    """Replace every layer the checkpoint quantizes by a `PackedLinear`; weights are filled in afterwards.

    Args:
        model: as built from its config, usually on the meta device; `model.config.quantization_config` describes it.
        target_device: where it will run; every packing decodes on any device, so nothing depends on it yet.

    Returns:
        the model and the packings in use.

    Raises:
        PluginError: the checkpoint needs a distribution that is not installed; the message says which.
        ModelError: the description makes no sense, or the backend is none of `BACKENDS`.
    """
    registry = registry or default_registry()
    config = _as_dict(model.config.quantization_config)  # type: ignore[union-attr]
    backend = str(config.get("backend") or "auto")
    if backend not in BACKENDS:
        told = "; ".join(f"{name} ({what})" for name, what in BACKENDS.items())
        raise ModelError(f"there is no backend {backend!r} to compute with; there are: {told}.")
    layers = _Described(config, find_structure(model).blocks)
    split_experts(model, lambda names: any(layers.of(name) for name in names))
    in_files = expert_layers_in_files(model)
    used = set()
    for info in find_structure(model).linears:
        described = layers.of(info.name)
        if described is None:
            continue
        linear = model.get_submodule(info.name)
        packed = _packed_linear(linear, info, described, config, registry)
        packed.backend = backend
        _check_experts(model, info.name, packed)
        parent, _, attribute = info.name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, packed)
        used.add(packed.packing.name)
    for module in model.modules():
        if isinstance(module, SplitExperts):
            module.rename(in_files)  # transformers looks for what files have by its name
    if not used:
        raise ModelError("the checkpoint says it is quantized, but no layer of the model is described as such.")
    return model, sorted(used)


def infer_target_device(device_map: Any = None) -> str:
    """The device a `device_map` of transformers means for computing: `cpu`, `cuda:0`, ...

    Args:
        device_map: None, a device, "auto" and its kin, or a mapping of module names to devices.
    """
    import torch

    if device_map is None:
        return "cpu"
    if isinstance(device_map, Mapping):
        devices = [str(d) if not isinstance(d, int) else f"cuda:{d}" for d in device_map.values()]
        return next((d for d in devices if d not in ("cpu", "disk")), "cpu")
    if isinstance(device_map, int):
        return f"cuda:{device_map}"
    if str(device_map) in ("auto", "balanced", "balanced_low_0", "sequential"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(device_map)


def post_init(model: nn.Module, used_backends: list[str]) -> None:
    """Called when the weights are in place. Nothing is repacked: a layer decodes when it is first used.

    Raises:
        ModelError: a tensor of a layer was in no file.
    """
    packed = {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    _check_read(packed)
    for module in packed.values():
        module.forget()  # a model may have looked at weights while they were not there yet


def _check_read(packed: Mapping[str, PackedLinear]) -> None:
    """Refuse layers some of whose tensors no file had; what transformers has read it marks.

    Raises:
        ModelError: naming the first such tensor.
    """
    tensors = {
        f"{layer}.{name}": module.stored(name) for layer, module in packed.items() for name in module.stored_names
    }
    read = {name for name, tensor in tensors.items() if getattr(tensor, "_is_hf_initialized", False)}
    missing = [name for name, tensor in tensors.items() if name not in read and not tensor.is_meta]
    if read and missing:  # who brings weights in another way marks none
        raise ModelError(f"the checkpoint has no tensor {and_more(missing)}: its files are incomplete, get them anew.")


def _as_dict(config: Any) -> dict[str, Any]:
    if isinstance(config, Mapping):
        return dict(config)
    result: dict[str, Any] = config.to_dict()
    return result


class _Described:
    """What a checkpoint's config says of each layer."""

    def __init__(self, config: Mapping[str, Any], blocks: Sequence[str]) -> None:
        self._config = config
        self._extra = dict(config.get("extra_config") or {})
        self._patterns = [(re.compile(key), fields) for key, fields in self._extra.items() if _REGEX_ONLY.search(key)]
        named = config.get("block_name_to_quantize") or config.get("to_quant_block_names") or blocks
        prefixes = named.split(",") if isinstance(named, str) else named
        self._prefixes = tuple(f"{prefix.strip().rstrip('.')}." for prefix in prefixes)

    def of(self, layer: str) -> dict[str, Any] | None:
        """The fields that hold for a layer, or None if it is not quantized."""
        special = self._extra.get(layer)
        if special is None:
            special = next((fields for pattern, fields in self._patterns if pattern.search(layer)), None)
        if special is None and not layer.startswith(self._prefixes):
            return None
        merged = {**self._config, **(special or {})}
        return None if int(merged.get("bits", FULL_PRECISION_BITS)) >= FULL_PRECISION_BITS else merged


def _check_experts(model: nn.Module, layer: str, packed: PackedLinear) -> None:
    """Refuse experts whose tensors transformers would take for those of its own fused ones.

    Raises:
        ModelError: it would collect their `weight` tensors into one, which belongs to nobody here.
    """
    if "weight" in packed.stored_names and experts_of(model, layer) is not None:
        raise ModelError(
            f"{layer}: transformers does not load single experts whose tensors are called `weight`, as packing "
            f"{packed.packing.name} calls them; export the model in another format."
        )


def _packed_linear(
    linear: Any, info: LinearInfo, described: Mapping[str, Any], config: Mapping[str, Any], registry: Registry
) -> PackedLinear:
    scheme = QuantizationScheme.from_dict(
        {k: v for k, v in described.items() if k in _SCHEME_FIELDS and v is not None}
    ).resolved()
    try:
        data_type = registry.data_type_for(scheme, config.get("provenance") or ())
        packing = _packing(str(described.get("packing_format", "")), registry, data_type.name, scheme, info.shape)
        activation = None
        if scheme.quantizes_activations:
            activation = registry.data_type_for(scheme.for_activations(), config.get("provenance") or ())
    except AutoRoundError as error:
        raise PluginError(_what_to_install(info.name, config, error)) from error
    rows, cols = info.shape
    packed = PackedLinear(
        cols, rows, linear.bias is not None, data_type, packing, scheme, linear.weight.dtype, activation
    )
    return packed.to(linear.weight.device)


def _packing(
    name: str, registry: Registry, data_type: str, scheme: QuantizationScheme, shape: tuple[int, int]
) -> Packing:
    from auto_round.export.named import NamedCodes

    if name == NamedCodes.name:
        return NamedCodes(registry)
    return registry.packing(name, lambda packing: packing.refuses(data_type, scheme, shape) is None)


def _what_to_install(layer: str, config: Mapping[str, Any], error: AutoRoundError) -> str:
    makers = {
        f"{source['distribution']}=={source['version']}"
        for source in (config.get("provenance") or {}).values()
        if isinstance(source, Mapping) and {"distribution", "version"} <= set(source)
    }
    told = f" The checkpoint was made with {' and '.join(sorted(makers))}: pip install it." if makers else ""
    return f"layer {layer} cannot be loaded: {str(error).rstrip('.')}.{told}"
