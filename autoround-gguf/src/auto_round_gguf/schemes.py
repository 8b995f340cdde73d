# SPDX-License-Identifier: Apache-2.0
"""Schemes: a preset, what one layer is under it, one block type alone.

This module imports neither torch nor gguf: schemes are listed with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from auto_round.errors import SchemeError
from auto_round.schemes import LayerPlace, QuantizationScheme
from auto_round_gguf.mixtures import PRESETS, Preset, Shape, fitting, tensor_type
from auto_round_gguf.types import BLOCK_TYPES, BlockType, prefixed

if TYPE_CHECKING:
    from auto_round_gguf.importance import LayerImportance

__all__ = ["GGUFScheme", "LayerScheme", "plain_scheme"]

OURS = ("preset", "importance", "inputs")
"""Fields that plain schemes do not have."""

OF_BITS = {
    False: {4: "q4_0", 5: "q5_0", 8: "q8_0"},
    True: {2: "q2_k", 3: "q3_k", 4: "q4_k", 5: "q5_k", 6: "q6_k", 8: "q8_0"},
}
"""The type that bits alone mean, without and with super-blocks."""


@dataclass(frozen=True)
class GGUFScheme(QuantizationScheme):
    """A preset of llama.cpp as a scheme: the fields say its base type, `for_layer` the mixture.

    Attributes:
        preset: its name in `PRESETS`.
    """

    preset: str = ""

    @classmethod
    def of(cls, preset: Preset) -> GGUFScheme:
        """The scheme of a preset."""
        kind = BLOCK_TYPES[preset.base]
        return cls(data_type=prefixed(kind), preset=preset.name, **kind.scheme_fields())

    def for_layer(self, place: LayerPlace) -> QuantizationScheme:
        from auto_round_gguf.importance import LayerImportance
        from auto_round_gguf.names import tensor_name

        name = tensor_name(place.config, place.name, place.blocks)
        kind = BLOCK_TYPES[PRESETS[self.preset].base]
        if name is not None:
            kind = tensor_type(PRESETS[self.preset], name, Shape.of(place.config, place.blocks))
        return LayerScheme(
            data_type=prefixed(fitting(kind, place.shape[1]) or kind),
            importance=None if name is None else LayerImportance.of_layer(name, place),
            inputs=place.shape[1],
            **(fitting(kind, place.shape[1]) or kind).scheme_fields(),
        )

    def replace(self, **changes: Any) -> QuantizationScheme:
        changed = super().replace(**changes)
        if changed.to_dict() | {"act_bits": 0} != self.to_dict() | {"act_bits": 0} or changed.quantizes_activations:
            told = ", ".join(f"{name}={value}" for name, value in changes.items())
            raise SchemeError(
                f"GGUF:{self.preset} is a mixture that llama.cpp fixes, {told} is no part of it; name another preset, "
                "or the layers that are to differ in layer_config."
            )
        return changed

    def to_dict(self) -> dict[str, Any]:
        """The fields of a plain scheme."""
        return _plain_fields(super().to_dict())


@dataclass(frozen=True)
class LayerScheme(QuantizationScheme):
    """What one layer is under a preset.

    Changed by `bits` alone, or by `data_type` alone, it becomes the block type that is meant.

    Attributes:
        importance: what is known of how much each of the layer's inputs matters.
        inputs: their number.
    """

    importance: LayerImportance | None = field(default=None, compare=False, repr=False)
    inputs: int = field(default=0, compare=False, repr=False)

    def replace(self, **changes: Any) -> QuantizationScheme:
        kind = self._meant(changes)
        if kind is not None:
            if "data_type" not in changes:  # another type may stand in for the one of these bits
                changes.pop("bits")
            plain = {"super_bits": None, "super_group_size": None} if kind.super_bits is None else {}
            changes = {**plain, "data_type": prefixed(kind), **kind.scheme_fields(), **changes}
        return super().replace(**changes)

    def _meant(self, changes: Mapping[str, Any]) -> BlockType | None:
        named = changes.get("data_type")
        if named is not None:
            return next((kind for kind in BLOCK_TYPES.values() if prefixed(kind) == named), None)
        bits = changes.get("bits")
        if not isinstance(bits, int) or bits == self.bits or bits >= 16:
            return None
        name = OF_BITS[self.super_bits is not None].get(bits) or OF_BITS[True].get(bits)
        if name is None:
            raise SchemeError(f"llama.cpp has no block type of {bits} bits; there are 2 to 6 and 8.")
        return fitting(BLOCK_TYPES[name], self.inputs) or BLOCK_TYPES[name]

    def to_dict(self) -> dict[str, Any]:
        """The fields of a plain scheme."""
        return _plain_fields(super().to_dict())


def plain_scheme(kind: BlockType) -> QuantizationScheme:
    """The scheme of one block type alone."""
    return QuantizationScheme(data_type=prefixed(kind), **kind.scheme_fields())


def _plain_fields(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in OURS}
