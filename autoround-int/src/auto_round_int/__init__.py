# SPDX-License-Identifier: Apache-2.0
"""Integer data types: weights of 2 to 8 bits, symmetric and asymmetric, and the layouts their runtimes read.

Hooks only: torch is imported by the modules that the records below name, when one of them is asked for.
"""

from __future__ import annotations

from auto_round.hookspecs import LazyDataType, LazyPacking, hookimpl
from auto_round.schemes import QuantizationScheme

__all__: list[str] = []

__version__ = "0.9.0"

AUTO_ROUND_API = "1.0"


@hookimpl
def quant_tensor() -> list[LazyDataType]:
    """The integer grids."""
    return [
        LazyDataType("int_sym", "auto_round_int.symmetric:IntSym", "2-8 bit integers around zero, signed scales"),
        LazyDataType("int_asym", "auto_round_int.asymmetric:IntAsym", "2-8 bit integers, scale and zero point"),
    ]


@hookimpl
def schemes() -> dict[str, QuantizationScheme]:
    """Weights in 2 to 8 bits, activations as they are."""
    named = {f"W{bits}A16": QuantizationScheme(bits=bits, data_type="int") for bits in (2, 3, 4, 5, 6, 8)}
    narrow = {f"W2A16G{size}": QuantizationScheme(bits=2, group_size=size, data_type="int") for size in (64, 32)}
    return named | narrow


@hookimpl
def exporters() -> list[LazyPacking]:
    """Layouts inside the `auto_round` container, the ones most runtimes read first."""
    gptq, awq = "auto_round_int.packing_gptq", "auto_round_int.packing_awq"
    return [
        LazyPacking("auto_round:auto_gptq", f"{gptq}:AutoGptq", "symmetric, GPTQ layout", format="auto_round"),
        LazyPacking("auto_round:auto_awq", f"{awq}:AutoAwq", "asymmetric 4 bits, AWQ layout", format="auto_round"),
        LazyPacking("auto_round", f"{gptq}:ZeroPointsAsTheyAre", "asymmetric, GPTQ layout", format="auto_round"),
        LazyPacking("auto_round:int_dense", f"{gptq}:Dense", "5, 6 and 7 bits", format="auto_round"),
    ]
