# SPDX-License-Identifier: Apache-2.0
"""Where files of the family load, as data.

Versions are the oldest tried, not the oldest possible. What vLLM takes on a GPU is what its source says, not tried.
"""

from __future__ import annotations

from auto_round.data_type import Runtime
from auto_round_fp8.elements import E4M3, Element

__all__ = ["EVERYWHERE", "runtimes_of"]

EVERYWHERE = Runtime("transformers", "5.23", "auto_round", note="any group size, through this package")

BLOCKS = {"group_size": ((128, 128),), "act_bits": (8,), "act_dynamic": (True,)}

E4M3_FILES = (
    Runtime("transformers", "5.23", "fp8", note="on a CPU it is dequantized"),
    Runtime("transformers", "5.23", "llm_compressor", note="needs the package compressed-tensors"),
    Runtime("vllm", "0.32", "fp8", ("cuda",), BLOCKS, multiple=128, fuses=True, note="scheme FP8_BLOCK"),
    Runtime(
        "vllm",
        "0.32",
        "llm_compressor",
        ("cpu",),
        {"group_size": (-1,), "act_bits": (8,), "act_group_size": (-1,), "act_dynamic": (True,)},
        fuses=True,
        note="scheme FP8_DYNAMIC",
    ),
    Runtime("vllm", "0.32", "llm_compressor", ("cuda",), {"group_size": (-1, 0)}, fuses=True),
    Runtime("vllm", "0.32", "llm_compressor", ("cuda",), BLOCKS, multiple=128, fuses=True, note="scheme FP8_BLOCK"),
)


def runtimes_of(element: Element) -> tuple[Runtime, ...]:
    """Where weights of an element load."""
    return (EVERYWHERE, *E4M3_FILES) if element is E4M3 else (EVERYWHERE,)
