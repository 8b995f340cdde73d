# SPDX-License-Identifier: Apache-2.0
"""A mixture by role: routed experts, which hold most weights, in few bits, and everything else as it is."""

from __future__ import annotations

import re
from dataclasses import dataclass

from auto_round.schemes import FULL_PRECISION_BITS, LayerPlace, QuantizationScheme

__all__ = ["ExpertsOnly", "expert_place"]

_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)")


def expert_place(layer: str) -> tuple[str, int, str] | None:
    """Where a layer of a routed expert belongs: module of the experts, number of the expert, name within it.

    None for every other layer, that of an expert which all tokens share included.
    """
    found = _EXPERT.fullmatch(layer)
    return (found[1], int(found[2]), found[3]) if found else None


@dataclass(frozen=True)
class ExpertsOnly(QuantizationScheme):
    """The fields hold for routed experts; other layers are left alone."""

    def for_layer(self, place: LayerPlace) -> QuantizationScheme:
        plain = QuantizationScheme.from_dict(self.to_dict())
        return plain if expert_place(place.name) else plain.replace(bits=FULL_PRECISION_BITS)
