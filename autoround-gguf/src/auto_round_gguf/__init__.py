# SPDX-License-Identifier: Apache-2.0
"""The block types of llama.cpp as data types, and the files it runs.

Hooks only: torch is imported by the modules that the records below name, when one of them is asked for.
"""

from __future__ import annotations

from auto_round.hookspecs import LazyDataType, LazyFormat, hookimpl
from auto_round.schemes import QuantizationScheme
from auto_round_gguf.mixtures import PRESETS
from auto_round_gguf.schemes import GGUFScheme
from auto_round_gguf.types import BLOCK_TYPES, prefixed

__all__: list[str] = []

__version__ = "0.9.0"

AUTO_ROUND_API = "1.0"


@hookimpl
def quant_tensor() -> list[LazyDataType]:
    """Every block type, and the names that recipes made elsewhere have for some of them."""
    types = [
        LazyDataType(prefixed(kind), f"auto_round_gguf.block:{name.upper()}", f"block type {name.upper()} of llama.cpp")
        for name, kind in BLOCK_TYPES.items()
    ]
    return [
        *types,
        LazyDataType("int_asym_float_zp", "auto_round_gguf.block:INT_ASYM_FLOAT_ZP", "Q4_1 or Q5_1, by bits"),
        LazyDataType("int_asym_dq", "auto_round_gguf.block:INT_ASYM_DQ", "Q2_K, Q4_K or Q5_K, by bits"),
        LazyDataType("int_sym_dq", "auto_round_gguf.block:INT_SYM_DQ", "Q3_K or Q6_K, by bits"),
    ]


@hookimpl
def schemes() -> dict[str, QuantizationScheme]:
    """The presets of llama.cpp."""
    return {f"GGUF:{name}": GGUFScheme.of(preset) for name, preset in PRESETS.items()}


@hookimpl
def exporters() -> list[LazyFormat]:
    """The file, by itself and with a preset in its name."""
    presets = [
        LazyFormat(f"gguf:{name.lower()}", f"auto_round_gguf.format:{name}", f"GGUF, scheme GGUF:{name}")
        for name in PRESETS
    ]
    return [LazyFormat("gguf", "auto_round_gguf.format:GGUF", "one file for llama.cpp and what runs it"), *presets]
