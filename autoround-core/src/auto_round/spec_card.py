# SPDX-License-Identifier: Apache-2.0
"""The spec card of a data type: what its plugin says of it, and what it does to a few numbers.

Nothing here knows a data type: the card is what the record describes, what the formats that take it announce, and one
weight that went through `encode` and `decode`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from auto_round.errors import AutoRoundError, SchemeError
from auto_round.runtime_table import Place, ordinary_layer, places
from auto_round.schemes import QuantizationScheme

if TYPE_CHECKING:
    import torch

    from auto_round.data_type import DataType
    from auto_round.plugins import Provenance, Registry

__all__ = ["Example", "SpecCard", "spec_card"]

SHOWN = 8
"""Numbers of a row that an example shows."""


@dataclass(frozen=True)
class Example:
    """A weight and what became of it; the first numbers of its first row.

    Attributes:
        shape: of the whole weight.
        before, after: weights, as they were and as they are loaded.
        stored: tensors of the codes: name to dtype, shape, and the first values.
    """

    shape: tuple[int, int]
    before: tuple[float, ...]
    after: tuple[float, ...]
    stored: Mapping[str, tuple[str, tuple[int, ...], tuple[float, ...]]]


@dataclass(frozen=True)
class SpecCard:
    """Everything there is to know of a data type without reading its code.

    Attributes:
        described: what `DataType.describe` says.
        provenance: who brings it.
        schemes: named schemes whose weights, or activations, it stores.
        learnt: what is tuned, and within which bounds.
        scheme: the scheme that the rest was made with, None if no scheme leads here.
        bits_per_weight: cost of a large weight, scales included.
        on_disk: for every format that takes it, the tensors of a layer below its name: dtype and shape.
        places: where files load.
        example: None where it has no stored form.
    """

    described: Mapping[str, Any]
    provenance: Provenance
    schemes: tuple[str, ...]
    learnt: Mapping[str, str]
    scheme: QuantizationScheme | None
    bits_per_weight: float | None
    on_disk: Mapping[str, Mapping[str, str]]
    places: tuple[Place, ...]
    example: Example | None


def spec_card(registry: Registry, name: str, scheme_name: str | None = None) -> SpecCard:
    """Make the card of a data type.

    Args:
        name: the registered name.
        scheme_name: the scheme to show it under; without, the first whose weights it stores.

    Raises:
        UnknownNameError: there is no such data type or scheme.
        SchemeError: the scheme leads to another data type.
    """
    data_type = registry.data_type(name)
    used = dict(_schemes_of(registry, data_type))
    if scheme_name is not None:
        scheme: QuantizationScheme | None = registry.scheme(scheme_name).resolved()
        assert scheme is not None
        found = registry.data_type_for(scheme)
        if found is not data_type:
            raise SchemeError(f"weights of scheme {scheme_name} are stored as {found.name}, not as {data_type.name}.")
    else:
        scheme = next((s for s in used.values() if s is not None), None)
    cost = None if scheme is None else data_type.bits_per_weight(scheme, ordinary_layer(registry, scheme).shape)
    return SpecCard(
        described=data_type.describe(),
        provenance=registry.provenance(name),
        schemes=tuple(used),
        learnt={
            parameter: "free" if b is None else f"{b[0]:g} to {b[1]:g}" for parameter, b in data_type.tuned.items()
        },
        scheme=scheme,
        bits_per_weight=cost,
        on_disk={} if scheme is None else dict(_on_disk(registry, scheme)),
        places=() if scheme is None else tuple(places(registry, scheme)),
        example=None if scheme is None or not data_type.encodes else _example(data_type, scheme),
    )


def _schemes_of(registry: Registry, data_type: DataType) -> Iterator[tuple[str, QuantizationScheme | None]]:
    """Named schemes that use it, with the scheme where it stores the weights and None where only activations."""
    for name in registry.scheme_names():
        scheme = registry.scheme(name).resolved()
        try:
            if scheme.quantizes_weights and registry.data_type_for(scheme) is data_type:
                yield name, scheme
            elif scheme.quantizes_activations and registry.data_type_for(scheme.for_activations()) is data_type:
                yield f"{name} (activations)", None
        except AutoRoundError:
            continue  # another plugin's trouble, which `auto-round plugins` tells


def _on_disk(registry: Registry, scheme: QuantizationScheme) -> Iterator[tuple[str, Mapping[str, str]]]:
    from auto_round.export.packed import ContainerFormat

    layer = ordinary_layer(registry, scheme)
    for name in registry.format_names():
        output_format = registry.output_format(name)
        if not isinstance(output_format, ContainerFormat) or output_format.refuses(layer) is not None:
            continue
        layout = output_format.packing(layer).layout(scheme, layer.shape)
        yield name, {tensor: f"{_dtype(dtype)} {list(shape)}" for tensor, (shape, dtype) in layout.items()}


def _example(data_type: DataType, scheme: QuantizationScheme) -> Example | None:
    """A weight of two rows, or of as many as a block has, through the stored form and back."""
    import torch

    rows, across = scheme.group_size if isinstance(scheme.group_size, tuple) else (2, max(scheme.group_size, 0))
    for columns in (max(across, SHOWN), 256):
        shape = (rows, columns)
        if data_type.supports(scheme, shape) is None:
            break
    else:
        return None
    # From one end to the other in a row that anyone can make again, outliers and a zero among them.
    weight = torch.linspace(-1.0, 1.0, columns).mul_(0.1).repeat(rows, 1)
    weight[0, :SHOWN] = torch.tensor([0.0, 0.01, -0.02, 0.05, -0.08, 0.13, -0.21, 0.34])
    codes = data_type.encode(weight, scheme, **data_type.share([weight], scheme))
    stored = {
        name: (_dtype(t.dtype), tuple(t.shape), tuple(float(v) for v in t.flatten()[:SHOWN].float()))
        for name, t in codes.tensors.items()
    }
    after = data_type.decode(codes)
    before, loaded = (tuple(float(value) for value in row[:SHOWN]) for row in (weight[0], after[0].float()))
    return Example(shape, before, loaded, stored)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
