# SPDX-License-Identifier: Apache-2.0
"""The registered names and what each means, as data; imports no torch.

A scheme's `mx_fp` or `mx_int` becomes one of these when its bits are appended; `mx_fp_rceil` is itself a name and takes
the element format from the bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from auto_round.names import normalise
from auto_round_mxfp.elements import (
    CEIL,
    CEIL_7_25,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    FLOOR,
    INT2,
    INT4,
    INT8,
    Element,
    ScaleRule,
)

__all__ = ["DATA_TYPES", "Name", "activation_element", "element_of"]

_ELEMENTS = {
    "mx_fp4": E2M1,
    "mx_fp4e2m1": E2M1,
    "mx_fp6": E2M3,
    "mx_fp6e2m3": E2M3,
    "mx_fp6e3m2": E3M2,
    "mx_fp8": E4M3,
    "mx_fp8e4m3": E4M3,
    "mx_fp8e5m2": E5M2,
    "mx_int8": INT8,
    "mx_int4": INT4,
    "mx_int2": INT2,
}


@dataclass(frozen=True)
class Name:
    """One registered name.

    Attributes:
        name: a wire format: its bits never change.
        elements: the element formats it may mean, told apart by their bits.
        rule: how the shared exponent is found.
    """

    name: str
    elements: tuple[Element, ...]
    rule: ScaleRule

    @property
    def summary(self) -> str:
        """One line for listings."""
        formats = " or ".join(element.name.upper() for element in self.elements)
        return f"microscaling {formats}, shared exponent {self.rule.formula.partition(',')[0]}"


def element_of(data_type: str, bits: int) -> Element | None:
    """The element format of a registered name at a number of bits; None for names of others and other widths."""
    known = DATA_TYPES.get(data_type)
    return next((e for e in known.elements if e.bits == bits), None) if known else None


def activation_element(data_type: str | None, bits: int) -> Element | None:
    """The element format that a scheme's `act_data_type` means, completed with the bits as schemes are."""
    name = normalise(data_type or "").rpartition(":")[2]
    return element_of(name, bits) or element_of(f"{name}{bits}", bits)


def _names() -> dict[str, Name]:
    named = [Name(name, (element,), FLOOR) for name, element in _ELEMENTS.items()]
    named += [Name(f"{name}_rceil", (element,), CEIL) for name, element in _ELEMENTS.items()]
    named += [Name("mx_fp_rceil", (E2M1, E2M3, E4M3), CEIL), Name("mx_fp4_rceil_v2", (E2M1,), CEIL_7_25)]
    return {name.name: name for name in named}


DATA_TYPES = _names()
