# SPDX-License-Identifier: Apache-2.0
"""Which block type each tensor of a model gets under llama.cpp's presets, and what becomes of rows that do not fit.

The rules are those of llama.cpp's quantizer (`llama-quant.cpp`, MIT licence), checked against what it does. Like it, a
preset means its mixture: more bits for values, for the way out of the feed-forward, for the first and the last blocks.

This module imports neither torch nor gguf: schemes are listed with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from auto_round_gguf.types import BLOCK_TYPES, BlockType

__all__ = ["PRESETS", "Preset", "Shape", "file_type", "fitting", "tensor_type"]


@dataclass(frozen=True)
class Shape:
    """What the rules look at, of one model.

    Attributes:
        blocks: number of blocks.
        heads_per_kv: query heads that share a key and value.
        experts: experts of a block, 0 without.
        large: whether it is one of those that llama.cpp counts among the models of 70 billion weights.
    """

    blocks: int
    heads_per_kv: int = 1
    experts: int = 0
    large: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any], blocks: int) -> Shape:
        """Of a model's config as plain values."""
        heads = config.get("num_attention_heads") or config.get("n_head") or 1
        kv = config.get("num_key_value_heads") or heads
        experts = config.get("num_experts") or config.get("num_local_experts") or 0
        large = blocks == 80 and config.get("model_type") in ("llama", "mistral", "qwen2")
        return cls(blocks, max(1, heads // kv), experts, large)


DOWN = ("down", "down experts")

Rule = Callable[[str, int, Shape], str | None]
"""Role of a tensor, index of its block: its block type, None for the preset's own."""


def _nothing(role: str, block: int, shape: Shape) -> str | None:
    return None


@dataclass(frozen=True)
class Preset:
    """One of llama.cpp's presets.

    Attributes:
        name: as llama.cpp spells it.
        base: the block type of most tensors.
        file_type: its number in files (`llama_ftype`).
        rule: what is different where.
    """

    name: str
    base: str
    file_type: int
    rule: Rule = field(repr=False, compare=False, default=_nothing)


def _first(block: int, shape: Shape, part: int) -> bool:
    return block < shape.blocks // part


def _more(block: int, shape: Shape) -> bool:
    """The first and last eighth of the blocks, and every third between."""
    eighth = shape.blocks // 8
    return block < eighth or block >= 7 * shape.blocks // 8 or (block - eighth) % 3 == 2


def _eight_experts(role: str, shape: Shape, output: str | None) -> str | None:
    if shape.experts != 8:
        return None
    if role in ("value", "key"):
        return "q8_0"
    return output if role == "attention output" else None


def _q2_k(role: str, block: int, shape: Shape) -> str | None:
    eight = _eight_experts(role, shape, "q5_k")
    if eight:
        return eight
    if role == "value":
        return "q4_k" if shape.heads_per_kv >= 4 else "q3_k"
    return "q3_k" if role in (*DOWN, "attention output") else None


def _q2_k_s(role: str, block: int, shape: Shape) -> str | None:
    eight = _eight_experts(role, shape, None)
    if eight:
        return eight
    if role == "value" and shape.heads_per_kv >= 4:
        return "q4_k"
    return "q4_k" if role in DOWN and _first(block, shape, 8) else None


def _q2_k_mixed(role: str, block: int, shape: Shape) -> str | None:
    if role in ("output", "embedding"):
        return "q8_0"
    if not shape.experts:
        return _q2_k_s(role, block, shape)
    return None if role in ("down experts", "experts") else "q4_k"


def _q3_k_s(role: str, block: int, shape: Shape) -> str | None:
    return _eight_experts(role, shape, "q5_k")


def _q3_k_m(role: str, block: int, shape: Shape) -> str | None:
    eight = _eight_experts(role, shape, "q5_k")
    if eight:
        return eight
    if role == "value":
        return "q5_k" if block < 2 else "q4_k"
    if role in DOWN:
        return "q5_k" if _first(block, shape, 16) else "q4_k"
    return "q4_k" if role == "attention output" else None


def _q3_k_l(role: str, block: int, shape: Shape) -> str | None:
    eight = _eight_experts(role, shape, None)
    if eight:
        return eight
    if role == "attention output" and shape.experts == 8:
        return None
    return "q5_k" if role in ("value", *DOWN, "attention output") else None


def _q4_k_s(role: str, block: int, shape: Shape) -> str | None:
    eight = _eight_experts(role, shape, "q5_k")
    if eight:
        return eight
    if role == "value":
        return "q5_k" if block < 4 else None
    return "q5_k" if role in DOWN and _first(block, shape, 8) else None


def _q4_k_m(role: str, block: int, shape: Shape) -> str | None:
    return _eight_experts(role, shape, "q5_k") or _q5_k_m(role, block, shape)


def _q5_k_m(role: str, block: int, shape: Shape) -> str | None:
    eight = _eight_experts(role, shape, None)
    if eight:
        return eight
    return "q6_k" if role in ("value", *DOWN) and _more(block, shape) else None


def _only_experts(role: str, block: int, shape: Shape) -> str | None:
    return _eight_experts(role, shape, None)


def _guarded(stronger: str) -> Rule:
    """The first blocks' way out of the feed-forward, which importance alone does not protect."""

    def rule(role: str, block: int, shape: Shape) -> str | None:
        if role in DOWN and _first(block, shape, 8):
            return stronger
        return _only_experts(role, block, shape)

    return rule


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("Q4_0", "q4_0", 2, _guarded("q4_1")),
        Preset("Q4_1", "q4_1", 3, _only_experts),
        Preset("Q5_0", "q5_0", 8, _guarded("q5_1")),
        Preset("Q5_1", "q5_1", 9, _only_experts),
        Preset("Q8_0", "q8_0", 7, _only_experts),
        Preset("Q2_K", "q2_k", 10, _q2_k),
        Preset("Q2_K_S", "q2_k", 21, _q2_k_s),
        Preset("Q2_K_MIXED", "q2_k", 21, _q2_k_mixed),
        Preset("Q3_K_S", "q3_k", 11, _q3_k_s),
        Preset("Q3_K_M", "q3_k", 12, _q3_k_m),
        Preset("Q3_K_L", "q3_k", 13, _q3_k_l),
        Preset("Q4_K_S", "q4_k", 14, _q4_k_s),
        Preset("Q4_K_M", "q4_k", 15, _q4_k_m),
        Preset("Q5_K_S", "q5_k", 16, _only_experts),
        Preset("Q5_K_M", "q5_k", 17, _q5_k_m),
        Preset("Q6_K", "q6_k", 18, _only_experts),
    )
}
"""By name."""

ROLES = {
    "output": "output",
    "token_embd": "embedding",
    "attn_v": "value",
    "attn_qkv": "value",
    "attn_k": "key",
    "attn_output": "attention output",
    "ffn_down": "down",
    "ffn_down_exps": "down experts",
    "ffn_gate_exps": "experts",
    "ffn_up_exps": "experts",
}
"""What a tensor is to the rules, by the last part of its name in GGUF."""

STANDING_IN = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
"""What takes over where rows are no whole super-blocks."""


def tensor_type(preset: Preset, tensor: str, shape: Shape, *, tied: bool = False) -> BlockType:
    """The block type of a tensor under a preset, whatever the length of its rows.

    Args:
        tensor: its name in GGUF, without `.weight`.
        tied: whether the embedding is also the output.
    """
    parts = tensor.split(".")
    role, block = ROLES.get(parts[-1], ""), int(parts[1]) if parts[0] == "blk" else 0
    if role == "embedding" and tied:
        role = "output"
    chosen = preset.rule(role, block, shape)
    if chosen is None:
        chosen = "q6_k" if role == "output" and preset.base != "q8_0" else preset.base
    if role == "value" and shape.large and chosen in ("q3_k", "q4_k"):
        chosen = "q5_k"  # few values serve many heads there
    return BLOCK_TYPES[chosen]


def fitting(kind: BlockType, in_features: int) -> BlockType | None:
    """The type itself, the one that stands in for it where rows are no whole blocks, or None where none fits."""
    if in_features % kind.block == 0:
        return kind
    other = STANDING_IN.get(kind.name)
    return fitting(BLOCK_TYPES[other], in_features) if other else None


def file_type(kind: BlockType) -> int:
    """The number in files (`llama_ftype`) of a model mostly made of one type."""
    named = {"q2_k": "Q2_K", "q3_k": "Q3_K_S", "q4_k": "Q4_K_S", "q5_k": "Q5_K_S"}
    return PRESETS[named.get(kind.name, kind.name.upper())].file_type
