# SPDX-License-Identifier: Apache-2.0
"""Where files of the family load, as data; versions are the oldest looked at, not the oldest possible.

What CPUs load was tried; what vLLM loads on GPUs was read in its source and not tried.

Of several records of one runtime and format, the one that comes closest to a layer says why it does not take it; the
first, if several do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from auto_round.data_type import Runtime

__all__ = ["ASYMMETRIC", "SYMMETRIC"]

ALL_BITS = (2, 3, 4, 5, 6, 7, 8)

GROUPS = (-1, 32, 64, 128)
"""What vLLM's kernels for GPUs take."""

WIDE_GROUPS = (-1, 16, 32, 64, 128, 256, 512, 1024)
"""What gptqmodel takes; vLLM's kernel for CPUs takes any even number."""


def _vllm(
    container: str, gpu_bits: tuple[int, ...], note: str, cpu_groups: tuple[int, ...] = GROUPS
) -> Iterator[Runtime]:
    """Weights alone: on GPUs, and on CPUs, where it has a kernel for four bits."""
    for device, bits, groups in (("cuda", gpu_bits, GROUPS), ("cpu", (4,), cpu_groups)):
        limits: dict[str, tuple[Any, ...]] = {"act_bits": (16,), "bits": bits, "group_size": groups}
        if container == "auto_round":
            limits["data_type"] = ("int",)  # the name in the file that it looks for, however alike others are
        yield Runtime("vllm", "0.32", container, (device,), limits, multiple=32, fuses=True, note=note)


def _gptqmodel(container: str, packages: str) -> Runtime:
    """The kernels that transformers takes for GPTQ and AWQ."""
    note = f"transformers needs {packages} for it; format auto_round loads with this package alone"
    return Runtime("transformers", "5.23", container, limits={"group_size": WIDE_GROUPS}, note=note)


_COMPRESSED = "needs the package compressed-tensors"

_EVERYWHERE = (
    Runtime("transformers", "5.23", "auto_round", note="any bits and group size, through this package"),
    _gptqmodel("auto_awq", "the package gptqmodel"),
    *_vllm("auto_awq", (4,), "groups of 128 load everywhere", WIDE_GROUPS),
)

SYMMETRIC = (
    *_EVERYWHERE,
    Runtime("transformers", "5.23", "llm_compressor", limits={"act_bits": (16,)}, note=_COMPRESSED),
    Runtime("transformers", "5.23", "llm_compressor", limits={"act_bits": (4, 8)}, note=_COMPRESSED, experts=False),
    _gptqmodel("auto_gptq", "the packages gptqmodel and optimum"),
    *_vllm("auto_gptq", (4, 8), "4 bits in groups of 128 load everywhere"),
    *_vllm("auto_round", (2, 3, 4, 8), "4 bits in groups of 128 load everywhere"),
    *_vllm("llm_compressor", ALL_BITS, "4 bits in groups of 128 load everywhere", WIDE_GROUPS),
    Runtime(
        "vllm", "0.32", "llm_compressor", limits={"bits": (8,), "act_bits": (8,), "group_size": (-1, 0)}, fuses=True
    ),
    Runtime("vllm", "0.32", "llm_compressor", ("cuda",), {"act_bits": (4, 8), "group_size": GROUPS}, fuses=True),
)
"""Places of signed codes without a zero point."""

ASYMMETRIC = (
    *_EVERYWHERE,
    Runtime(
        *("transformers", "5.23", "llm_compressor"),
        note=_COMPRESSED,
        needs="quantization_config=CompressedTensorsConfig(dequantize=True) alone",
    ),
    *_vllm("auto_round", (4,), "4 bits in groups of 128 load; other widths load in transformers"),
    *_vllm("llm_compressor", ALL_BITS, "4 bits in groups of 128 load everywhere", WIDE_GROUPS),
)
"""Places of codes with a zero point."""
