# SPDX-License-Identifier: Apache-2.0
"""8-bit floating point: e4m3 and e5m2 by tensor, row, group and block, and 4-bit integers on top of e4m3.

Hooks only: torch is imported by the modules that the records below name, when one of them is asked for.
"""

from __future__ import annotations

from auto_round.hookspecs import LazyDataType, LazyFormat, LazyPacking, hookimpl
from auto_round.schemes import QuantizationScheme

__all__: list[str] = []

__version__ = "0.9.0"

AUTO_ROUND_API = "1.0"


@hookimpl
def quant_tensor() -> list[LazyDataType]:
    """The elements with their scales; several names for one thing where existing files use several."""
    groups, blocks = "a scale per tensor, row or group", "a scale per block of rows and inputs"
    named = {
        "fp8": f"e4m3, {groups}",
        "fp8_sym": f"e4m3, {groups}",
        "fp8_e4m3": f"e4m3, {groups}",
        "fp8_e5m2": f"e5m2, {groups}",
        "fp8_e4m3fnuz": f"e4m3fnuz, {groups}",
        "block_fp8": f"e4m3, {blocks}",
        "block_fp8_sym": f"e4m3, {blocks}",
        "block_fp8_e4m3": f"e4m3, {blocks}",
        "fp8_unit_scale": "e4m3 without a scale",
        "fp8_e5m2_unit_scale": "e5m2 without a scale",
        "fp8_dynamic": "e4m3, a scale per token, for activations",
    }
    floats = [LazyDataType(name, f"auto_round_fp8.float8:{name.upper()}", told) for name, told in named.items()]
    hybrid = "integers of 2 to 8 bits on top of e4m3, for runtimes that compute in it"
    return [
        *floats,
        LazyDataType("fp8_to_int_sym", "auto_round_fp8.hybrid:FP8_TO_INT_SYM", hybrid),
        LazyDataType("w4fp8", "auto_round_fp8.hybrid:W4FP8", hybrid),
    ]


@hookimpl
def schemes() -> dict[str, QuantizationScheme]:
    """Weights and activations in eight bits, or weights alone."""
    rows = QuantizationScheme(bits=8, group_size=-1, data_type="fp")
    tokens = rows.replace(act_bits=8, act_group_size=-1, act_sym=True, act_data_type="fp", act_dynamic=True)
    return {
        "FP8_STATIC": tokens.replace(act_group_size=0, act_dynamic=False),
        "FP8_DYNAMIC": tokens,
        "FP8_BLOCK": tokens.replace(group_size=(128, 128), act_group_size=128),
        "FPW8A16": rows.replace(group_size=0),
        "W4AFP8": tokens.replace(bits=4, group_size=128, data_type="fp8_to_int"),
    }


@hookimpl
def exporters() -> list[LazyFormat | LazyPacking]:
    """The fine-grained format, and layouts inside two containers."""
    own, compressed = "auto_round_fp8.packing_auto_round", "auto_round_fp8.packing_compressed"
    return [
        LazyFormat(
            "fp8", "auto_round_fp8.fine_grained:FineGrained", "fine-grained FP8, for transformers and vLLM", reads="fp8"
        ),
        LazyPacking("auto_round:fp8_static", f"{own}:Static", "e4m3 with static activations", format="auto_round"),
        LazyPacking("auto_round:fp8", f"{own}:Plain", "e4m3 with dynamic or no activations", format="auto_round"),
        LazyPacking("auto_round:fp8_to_int", f"{own}:Hybrid", "two 4-bit integers a byte", format="auto_round"),
        LazyPacking(
            "float-quantized",
            f"{compressed}:FloatQuantized",
            "e4m3 in files of compressed-tensors",
            format="llm_compressor",
        ),
    ]
