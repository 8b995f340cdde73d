# SPDX-License-Identifier: Apache-2.0
"""Where the schemes that are installed load: what data types say of runtimes, asked for every scheme and format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from auto_round.plan import LayerSpec
from auto_round.runtimes import obstacle
from auto_round.schemes import FULL_PRECISION_BITS

if TYPE_CHECKING:
    from auto_round.plugins import Registry
    from auto_round.schemes import QuantizationScheme

__all__ = ["Place", "ordinary_layer", "places", "table"]

SHAPE = (4096, 4096)
"""A layer whose sides every runtime can divide, so that only the scheme decides."""


@dataclass(frozen=True)
class Place:
    """Files of a format, in a runtime.

    Attributes:
        format: the output format.
        runtime: its name, as people call it.
        minimum: first version that loads it.
        devices: where it runs there.
        note: what else is worth knowing, what has to be done first among it.
    """

    format: str
    runtime: str
    minimum: str
    devices: tuple[str, ...]
    note: str


def ordinary_layer(registry: Registry, scheme: QuantizationScheme, shape: tuple[int, int] = SHAPE) -> LayerSpec:
    """A linear layer somewhere in a model, under a scheme.

    Raises:
        UnknownNameError: no installed plugin brings the scheme's data types.
    """
    import torch

    full = scheme.resolved()
    quantizes = full.quantizes_activations
    activation = registry.data_type_for(full.for_activations()) if quantizes else None
    data_type = registry.data_type_for(full)
    return LayerSpec(
        "layer", shape, torch.bfloat16, "block", False, False, full, data_type=data_type, activation=activation
    )


def places(registry: Registry, scheme: QuantizationScheme) -> Iterator[Place]:
    """Everywhere a scheme loads."""
    layer = ordinary_layer(registry, scheme)
    assert layer.data_type is not None
    if layer.data_type.supports(layer.scheme, layer.shape):
        return
    formats = registry.format_names()
    for name in formats:
        variant = name.rpartition(":")[0] in formats  # of a format that is asked itself
        if variant or registry.output_format(name).refuses(layer) is not None:
            continue
        for record in layer.data_type.runtimes:
            if record.format == name and obstacle(layer, record) is None:
                note = "; ".join(filter(None, (record.note, record.needs and f"with {record.needs}")))
                yield Place(name, record.name, record.minimum, record.devices, note)


def table(registry: Registry, names: Iterable[str]) -> list[tuple[Place, tuple[str, ...]]]:
    """Every place with the names of the schemes that load there, in the order places are met."""
    schemes: dict[Place, list[str]] = {}
    for name in names:
        scheme = registry.scheme(name)
        if scheme.bits >= FULL_PRECISION_BITS:
            continue  # leaves weights as they are, which every runtime loads
        for place in places(registry, scheme):
            schemes.setdefault(place, []).append(name)
    return [(place, tuple(found)) for place, found in schemes.items()]
