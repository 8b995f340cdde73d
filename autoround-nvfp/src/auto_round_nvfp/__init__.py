# SPDX-License-Identifier: Apache-2.0
"""NVFP4: four-bit floats in short blocks, whose scales are eight-bit floats; for weights and for activations.

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
    """The block-scaled floats."""
    where = "auto_round_nvfp.nvfp"
    return [
        LazyDataType("nv_fp4", f"{where}:NvFp4", "FP4 in blocks of 16, E4M3 block scales, one scale for the tensor"),
        LazyDataType(
            "nv_fp4_with_static_gs", f"{where}:NvFp4StaticGlobalScale", "the same for activations, tensor scale fixed"
        ),
        LazyDataType("nvfp4_v2", f"{where}:NvFp4V2", "FP4 in blocks of 16 or 32, UE5M3 block scales only"),
        LazyDataType(
            "nvfp4_v2_with_global_scale", f"{where}:NvFp4V2GlobalScale", "the same with one scale for the tensor"
        ),
    ]


@hookimpl
def schemes() -> dict[str, QuantizationScheme]:
    """Weights and activations in four bits, or weights alone."""
    weights = QuantizationScheme(bits=4, group_size=16, data_type="nv_fp")
    both = weights.replace(act_bits=4, act_group_size=16, act_sym=True)
    return {
        # Not dynamic: block scales are computed as the model runs, the scale of the tensor is fixed at calibration.
        "NVFP4": both.replace(act_data_type="nv_fp4_with_static_gs", act_dynamic=False),
        "NVFP4A16": weights,
        "NVFP4_E5M3": both.replace(data_type="nvfp4_v2", act_data_type="nvfp4_v2", act_dynamic=True),
    }


@hookimpl
def exporters() -> list[LazyPacking]:
    """Layouts inside two containers: compressed-tensors' files, and the `auto_round` one."""
    own, compressed = "auto_round_nvfp.packing", "auto_round_nvfp.packing_compressed"
    return [
        LazyPacking(
            "nvfp4-pack-quantized",
            f"{compressed}:CompressedNvFp4",
            "nv_fp4 as compressed-tensors packs it",
            format="llm_compressor",
        ),
        LazyPacking("auto_round:nv_fp", f"{own}:PackedNvFp4", "nv_fp4, two codes a byte", format="auto_round"),
        LazyPacking(
            "auto_round:llm_compressor_nvfp4_e5m3",
            f"{own}:PackedNvFp4E5M3",
            "nvfp4_v2, two codes a byte",
            format="auto_round",
        ),
    ]
