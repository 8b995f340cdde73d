# SPDX-License-Identifier: Apache-2.0
"""Where microscaling files load, as data."""

from __future__ import annotations

from collections.abc import Iterator

from auto_round.data_type import Runtime

__all__ = ["RUNTIMES"]

BLOCK = (32,)
COMPRESSED = "with compressed-tensors 0.20; elements e2m1, e2m3 and e4m3; computes in the checkpoint's dtype only"
GPT_OSS = "gpt-oss models; decodes experts unless the packages triton and kernels are there to compute with them"
VLLM = "MXFP4 and MXFP8; inputs are rounded from compute capability 10 on, with schemes of A16, too, and else never"


def _vllm(container: str, **eight: tuple[str | None, ...]) -> Iterator[Runtime]:
    """What vLLM's source says. It has no kernel for CPUs, but was seen to read both containers with one given to it.

    Args:
        eight: what else limits elements of 8 bits.
    """
    common = {"group_size": BLOCK, "data_type": ("mx_fp", "mx_fp4", "mx_fp8")}
    for bits, more in ((4, {}), (8, eight)):
        limits = {"bits": (bits,), "act_bits": (bits, 16), **common, **more}
        yield Runtime("vllm", "0.32", container, ("cuda",), limits, fuses=True, note=VLLM)


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
    *_vllm("llm_compressor"),
    *_vllm("auto_round", act_data_type=("mx_fp", None)),
)
