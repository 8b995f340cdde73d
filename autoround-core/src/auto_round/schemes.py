# SPDX-License-Identifier: Apache-2.0
"""What a user asks for: how many bits, in which data type, in groups of which size; for weights and activations.

A scheme is plain data. What its `data_type` means is known to the plugin that offers the data type. This module
imports no torch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from auto_round.errors import SchemeError, UnknownOptionError
from auto_round.names import did_you_mean, normalise

__all__ = [
    "FULL_PRECISION_BITS",
    "PRESET_SCHEMES",
    "GroupSize",
    "LayerPlace",
    "QuantizationScheme",
    "check_field_names",
    "default_scheme_name",
]

GroupSize = int | tuple[int, int]
"""-1: a group per row; 0: one per tensor; n: one per n inputs of a row; (m, n): one per m rows by n inputs."""

FULL_PRECISION_BITS = 16
"""From this many bits on, a weight or an activation is left as it is."""


@functools.cache
def _defaults() -> dict[str, str]:
    text = resources.files("auto_round").joinpath("resources/defaults.json").read_text(encoding="utf-8")
    loaded: dict[str, str] = json.loads(text)
    return loaded


def default_scheme_name() -> str:
    """The scheme that is meant when none is named."""
    return _defaults()["scheme"]


def _default_data_type() -> str:
    return _defaults()["data_type"]


@dataclass(frozen=True)
class LayerPlace:
    """A layer as a mixed scheme sees it.

    Attributes:
        name: its module's name.
        shape: (out_features, in_features).
        block: index of the block it lies in, None outside of all blocks.
        blocks: how many blocks there are.
        config: the model's config as plain values.
    """

    name: str
    shape: tuple[int, int]
    block: int | None
    blocks: int
    config: Mapping[str, Any]


@dataclass(frozen=True)
class QuantizationScheme:
    """How one layer is quantized. A subclass that overrides `for_layer` is a mixture.

    Fields that are None take their meaning from the others, see `resolved`.

    Attributes:
        bits: bits of a stored weight, 1 to 8; 16 or more leaves the layer as it is.
        group_size: how many weights share one scale, see `GroupSize`.
        sym: symmetric around zero (no zero point) or not.
        data_type: name of a data type; the qualified form `distribution:name` settles a conflict.
        act_bits, act_group_size, act_sym, act_data_type: the same for activations; 16 bits or more leaves them alone.
        act_dynamic: whether activation scales are computed as the model runs or fixed at calibration.
        super_bits, super_group_size: for data types whose scales are themselves quantized: bits of a scale, and how
            many groups make a super-group.
    """

    bits: int = 4
    group_size: GroupSize = 128
    sym: bool = True
    data_type: str = field(default_factory=_default_data_type)
    act_bits: int | None = None
    act_group_size: GroupSize | None = None
    act_sym: bool | None = None
    act_data_type: str | None = None
    act_dynamic: bool | None = None
    super_bits: int | None = None
    super_group_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("group_size", "act_group_size"):
            value = getattr(self, name)
            if isinstance(value, list):  # JSON has no tuples
                object.__setattr__(self, name, tuple(value))
        self._check()

    def _check(self) -> None:
        for name in ("bits", "act_bits", "super_bits", "super_group_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise SchemeError(f"{name} must be a whole number of at least 1, not {value!r}.")
        for name in ("data_type", "act_data_type"):
            value = getattr(self, name)
            if not (isinstance(value, str) and value.strip()) and (value is not None or name == "data_type"):
                raise SchemeError(f"{name} must be the name of a data type, not {value!r}.")
        for name in ("sym", "act_sym", "act_dynamic"):
            value = getattr(self, name)
            if not isinstance(value, bool) and (value is not None or name == "sym"):
                raise SchemeError(f"{name} must be True or False, not {value!r}.")
        for name in ("group_size", "act_group_size"):
            value = getattr(self, name)
            fine = value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= -1)
            if isinstance(value, tuple):
                fine = len(value) == 2 and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in value)
            if not fine:
                raise SchemeError(
                    f"{name} must be -1 (a row), 0 (the tensor), a positive number or a pair of them, not {value!r}."
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> QuantizationScheme:
        """Make a scheme of plain values.

        Raises:
            UnknownOptionError: a key that is no field of a scheme.
        """
        check_field_names(values)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, without the fields that say nothing (None); a pair of group sizes becomes a list."""
        items = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return {name: list(v) if isinstance(v, tuple) else v for name, v in items if v is not None}

    def replace(self, **changes: Any) -> QuantizationScheme:
        """A scheme with some fields changed.

        Raises:
            UnknownOptionError: a name that is no field of a scheme.
        """
        check_field_names(changes)
        return dataclasses.replace(self, **changes)

    def resolved(self) -> QuantizationScheme:
        """The same scheme with every activation field filled in: 16 bits, dynamic, otherwise like the weights."""
        act_bits = FULL_PRECISION_BITS if self.act_bits is None else self.act_bits
        if act_bits >= FULL_PRECISION_BITS:
            return dataclasses.replace(self, act_bits=act_bits)
        return dataclasses.replace(
            self,
            act_bits=act_bits,
            act_group_size=self.group_size if self.act_group_size is None else self.act_group_size,
            act_sym=self.sym if self.act_sym is None else self.act_sym,
            act_data_type=self.data_type if self.act_data_type is None else self.act_data_type,
            act_dynamic=True if self.act_dynamic is None else self.act_dynamic,
        )

    def for_layer(self, place: LayerPlace) -> QuantizationScheme:
        """The scheme of one layer before `layer_config` changes it: this one, if it is no mixture."""
        return self

    def for_activations(self) -> QuantizationScheme:
        """The activation fields of a resolved scheme, as those of weights, to look their data type up by."""
        assert self.act_bits is not None and self.act_group_size is not None  # noqa: PT018 - one condition
        assert self.act_sym is not None and self.act_data_type is not None  # noqa: PT018 - one condition
        return QuantizationScheme(self.act_bits, self.act_group_size, self.act_sym, self.act_data_type)

    @property
    def quantizes_weights(self) -> bool:
        """Whether weights change at all."""
        return self.bits < FULL_PRECISION_BITS

    @property
    def quantizes_activations(self) -> bool:
        """Whether activations change at all."""
        return self.act_bits is not None and self.act_bits < FULL_PRECISION_BITS


def check_field_names(values: Mapping[str, Any]) -> None:
    """Refuse keys that are no field of a scheme.

    Raises:
        UnknownOptionError: naming the first such key and the fields most like it.
    """
    known = {f.name for f in dataclasses.fields(QuantizationScheme)}
    for key in values:
        if key not in known:
            raise UnknownOptionError(f"a scheme has no field {key!r}{did_you_mean(key, known)}")


class _PresetSchemes(MutableMapping[str, QuantizationScheme]):
    """Every named scheme of the process: those of plugins, and those a program adds here."""

    def __getitem__(self, name: str) -> QuantizationScheme:
        from auto_round.plugins import default_registry

        return default_registry().scheme(name)

    def __setitem__(self, name: str, scheme: QuantizationScheme) -> None:
        from auto_round.plugins import default_registry

        default_registry().add_scheme(name, scheme)

    def __delitem__(self, name: str) -> None:
        from auto_round.plugins import default_registry

        default_registry().remove_scheme(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and normalise(name) in {normalise(known) for known in self}

    def __iter__(self) -> Iterator[str]:
        from auto_round.plugins import default_registry

        return iter(default_registry().scheme_names())

    def __len__(self) -> int:
        return sum(1 for _ in self)


PRESET_SCHEMES: MutableMapping[str, QuantizationScheme] = _PresetSchemes()
"""Named schemes, a live view over plugins; `PRESET_SCHEMES["MINE"] = QuantizationScheme(...)` adds one at run time."""
