# SPDX-License-Identifier: Apache-2.0
"""Integer data types: 2 to 8 bits, weights and activations, and the formats and layouts their runtimes read.

Hooks only: torch is imported by the modules that the records below name, when one of them is asked for.
"""

from __future__ import annotations

from auto_round.hookspecs import LazyDataType, LazyFormat, LazyPacking, hookimpl
from auto_round.schemes import FULL_PRECISION_BITS, QuantizationScheme
from auto_round_int.mixture import ExpertsNarrow

__all__: list[str] = []

__version__ = "0.9.0"

AUTO_ROUND_API = "1.0"


@hookimpl
def quant_tensor() -> list[LazyDataType]:
    """The integer grids."""
    return [
        LazyDataType("int_sym", "auto_round_int.symmetric:IntSym", "2-8 bit integers around zero, signed scales"),
        LazyDataType("int_asym", "auto_round_int.asymmetric:IntAsym", "2-8 bit integers, scale and zero point"),
        LazyDataType("int_sym_gptq", "auto_round_int.restricted:IntSymGptq", "2-8 bit integers, positive scales"),
    ]


@hookimpl
def schemes() -> dict[str, QuantizationScheme]:
    """Weights in 2 to 8 bits; weights and activations in 8 and in 4; a mixture; and none, for single layers."""
    named = {f"W{bits}A16": QuantizationScheme(bits=bits, data_type="int") for bits in (2, 3, 4, 5, 6, 7, 8)}
    named |= {f"{name}G{size}": scheme.replace(group_size=size) for name, scheme in named.items() for size in (64, 32)}
    int8, int4 = _with_activations(8), _with_activations(4)
    return named | {
        "INT8": int8,
        "INT8_W8A8": int8,
        "INT4": int4,
        "W4A16_MIXED": ExpertsNarrow(bits=4, data_type="int"),
        "BF16": QuantizationScheme(bits=FULL_PRECISION_BITS, data_type="int"),
    }


@hookimpl
def exporters() -> list[LazyFormat | LazyPacking]:
    """Formats, and layouts inside those of others, the ones that most runtimes read first."""
    gptq, awq = "auto_round_int.packing_gptq", "auto_round_int.packing_awq"
    compressed = "auto_round_int.packing_compressed"
    return [
        LazyFormat("auto_gptq", "auto_round_int.format_gptq:AutoGptqFormat", "checkpoints of GPTQ, symmetric"),
        LazyFormat("auto_awq", "auto_round_int.format_awq:AutoAwqFormat", "checkpoints of AWQ, 4 bits"),
        LazyPacking("auto_round:auto_gptq", f"{gptq}:AutoGptq", "symmetric, GPTQ layout", format="auto_round"),
        LazyPacking("auto_round:auto_awq", f"{awq}:AutoAwq", "asymmetric 4 bits, AWQ layout", format="auto_round"),
        LazyPacking("auto_round", f"{gptq}:ZeroPointsAsTheyAre", "asymmetric, GPTQ layout", format="auto_round"),
        LazyPacking("auto_round:gptqmodel", f"{gptq}:GptqModel", "GPTQ layout, version 2", format="auto_round"),
        LazyPacking("auto_round:int_dense", f"{gptq}:Dense", "5, 6 and 7 bits", format="auto_round"),
        LazyPacking(
            "int-quantized", f"{compressed}:IntQuantized", "weights and inputs of 8 bits", format="llm_compressor"
        ),
        LazyPacking("pack-quantized", f"{compressed}:PackQuantized", "2 to 8 bits, in words", format="llm_compressor"),
    ]


def _with_activations(bits: int) -> QuantizationScheme:
    """A scale for each row of a weight and each token; activations in the grid that runtimes compute."""
    return QuantizationScheme(
        bits=bits,
        group_size=-1,
        data_type="int",
        act_bits=bits,
        act_group_size=-1,
        act_sym=True,
        act_data_type="int_sym_gptq",
        act_dynamic=True,
    )
