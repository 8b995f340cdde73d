# SPDX-License-Identifier: Apache-2.0
"""Core's own answers to the hooks: the containers that belong to no family. No data types, no schemes."""

from auto_round.hookspecs import LazyFormat, hookimpl

__all__ = ["exporters"]


@hookimpl
def exporters() -> list[LazyFormat]:
    """The two containers and the research format."""
    return [
        LazyFormat(
            "auto_round",
            "auto_round.export.container:AutoRoundFormat",
            "the generic container; loads through transformers, and in vLLM where a packing it knows is used",
        ),
        LazyFormat(
            "llm_compressor",
            "auto_round.export.llm_compressor:LLMCompressorFormat",
            "checkpoints of compressed-tensors, for vLLM and transformers",
        ),
        LazyFormat("fake", "auto_round.export.fake:FakeFormat", "dequantized weights at full precision, for research"),
    ]
