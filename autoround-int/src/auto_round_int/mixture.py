# SPDX-License-Identifier: Apache-2.0
"""A mixture by role: few bits for routed experts, which hold most weights, more for what every token passes through."""

from __future__ import annotations

from dataclasses import dataclass

from auto_round.schemes import FULL_PRECISION_BITS, LayerPlace, QuantizationScheme

__all__ = ["ExpertsNarrow"]

OTHER_BITS = 8
"""Bits of the layers that every token passes through."""

ROUTERS = ("gate", "router", "shared_expert_gate")
"""What the layers that choose experts are called; runtimes compute them at full precision."""


@dataclass(frozen=True)
class ExpertsNarrow(QuantizationScheme):
    """The fields hold for routed experts; the other layers get eight bits, those that choose experts are left alone."""

    def for_layer(self, place: LayerPlace) -> QuantizationScheme:
        """An expert that all tokens share is no routed one."""
        plain, parts = QuantizationScheme.from_dict(self.to_dict()), place.name.split(".")
        if parts[-1] in ROUTERS:
            return plain.replace(bits=FULL_PRECISION_BITS)
        return plain if "experts" in parts else plain.replace(bits=OTHER_BITS)
