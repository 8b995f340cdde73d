# SPDX-License-Identifier: Apache-2.0
"""Microscaling data types: 32 elements of a few bits that share one power of two, for weights and activations.

Hooks only: torch is imported by the modules that the records below name, when one of them is asked for.
"""

from __future__ import annotations

from auto_round.hookspecs import LazyDataType, LazyFormat, LazyPacking, hookimpl
from auto_round.schemes import QuantizationScheme
from auto_round_mxfp.mixture import ExpertsOnly
from auto_round_mxfp.names import DATA_TYPES

__all__: list[str] = []

__version__ = "0.9.0"

AUTO_ROUND_API = "1.0"


@hookimpl
def quant_tensor() -> list[LazyDataType]:
    """Every element format under every rule for the shared exponent."""
    return [LazyDataType(n.name, f"auto_round_mxfp.microscaling:{n.name}", n.summary) for n in DATA_TYPES.values()]


@hookimpl
def schemes() -> dict[str, QuantizationScheme]:
    """Weights and activations of the same width; forms that leave activations as they are; one for experts alone."""
    named = {f"MXFP{bits}": _scheme(bits, "mx_fp", "mx_fp") for bits in (4, 6, 8)}
    named |= {f"MXFP{bits}_RCEIL": _scheme(bits, "mx_fp", "mx_fp_rceil") for bits in (4, 8)}
    named |= {f"MXINT{bits}": _scheme(bits, "mx_int", "mx_int") for bits in (4, 8)}
    named |= {f"MXFP{bits}A16": _scheme(bits, "mx_fp") for bits in (4, 6, 8)}
    named |= {f"MXINT{bits}A16": _scheme(bits, "mx_int") for bits in (4, 8)}
    return named | {"MXFP4_MOE": ExpertsOnly(bits=4, group_size=32, data_type="mx_fp")}


@hookimpl
def exporters() -> list[LazyFormat | LazyPacking]:
    """The files of gpt-oss; layouts inside the `auto_round` container, and those that compressed-tensors reads."""
    own, shared = "auto_round_mxfp.packing", "auto_round_mxfp.packing_compressed_tensors"
    return [
        LazyFormat(
            "mxfp4",
            "auto_round_mxfp.format_mxfp4:GptOssFormat",
            "gpt-oss models with experts in MXFP4, as they are published; transformers loads them by itself",
        ),
        LazyPacking("auto_round:mx_fp", f"{own}:MxFp", "elements of 4, 6 and 8 bits", format="auto_round"),
        LazyPacking("auto_round:mx_fp8e5m2", f"{own}:MxFp8E5M2", "elements e5m2", format="auto_round"),
        LazyPacking("auto_round:mx_int", f"{own}:MxInt", "whole numbers of 2, 4 and 8 bits", format="auto_round"),
        LazyPacking("mxfp4-pack-quantized", f"{shared}:MxFp4", "e2m1, two to a byte", format="llm_compressor"),
        LazyPacking("mxfp6-pack-quantized", f"{shared}:MxFp6", "e2m3, four to three bytes", format="llm_compressor"),
        LazyPacking("mxfp8-quantized", f"{shared}:MxFp8", "e4m3, as they are", format="llm_compressor"),
    ]


def _scheme(bits: int, data_type: str, act_data_type: str | None = None) -> QuantizationScheme:
    if act_data_type is None:
        return QuantizationScheme(bits=bits, group_size=32, data_type=data_type)
    return QuantizationScheme(
        bits=bits,
        group_size=32,
        data_type=data_type,
        act_bits=bits,
        act_group_size=32,
        act_sym=True,
        act_data_type=act_data_type,
        act_dynamic=True,
    )
