# SPDX-License-Identifier: Apache-2.0
"""Where microscaling files load, as data."""

from __future__ import annotations

from typing import Any

from auto_round.data_type import Runtime

__all__ = ["RUNTIMES"]

BLOCK = (32,)
COMPRESSED = "with compressed-tensors 0.20; elements e2m1, e2m3 and e4m3; computes in the checkpoint's dtype only"
GPT_OSS = "gpt-oss models; decodes experts unless the packages triton and kernels are there to compute with them"
VLLM = "MXFP4 and MXFP8; inputs are rounded from compute capability 10 on, with schemes of A16, too, and else never"


# What vLLM's source says. It has no kernel for CPUs, but was seen to read both containers with one given to it.
ON_GPUS: dict[str, Any] = {"minimum": "0.32", "devices": ("cuda",), "fuses": True, "note": VLLM}
E2M1_OR_E4M3: dict[str, tuple[Any, ...]] = {"group_size": BLOCK, "data_type": ("mx_fp", "mx_fp4", "mx_fp8")}
FOUR = {"bits": (4,), "act_bits": (4, 16), **E2M1_OR_E4M3}
EIGHT = {"bits": (8,), "act_bits": (8, 16), **E2M1_OR_E4M3}

RUNTIMES = (
    Runtime("transformers", "5.23", "auto_round", note="every element format, through this package"),
    Runtime("transformers", "5.23", "llm_compressor", limits={"bits": (4,), "group_size": BLOCK}, note=COMPRESSED),
    Runtime(
        *("transformers", "5.23", "llm_compressor"),
        limits={"bits": (6, 8), "group_size": BLOCK},
        note=COMPRESSED,
        experts=False,
    ),
    Runtime("transformers", "5.23", "mxfp4", limits={"bits": (4,), "group_size": BLOCK}, note=GPT_OSS),
    Runtime("vllm", format="llm_compressor", limits=FOUR, **ON_GPUS),
    Runtime("vllm", format="llm_compressor", limits=EIGHT, **ON_GPUS),
    Runtime("vllm", format="auto_round", limits=FOUR, **ON_GPUS),
    # Experts of 8 bits lie there in a way that only this package reads, see `auto_round.export.container`.
    Runtime("vllm", format="auto_round", limits={**EIGHT, "act_data_type": ("mx_fp", None)}, experts=False, **ON_GPUS),
)
