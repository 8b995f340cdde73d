# SPDX-License-Identifier: Apache-2.0
"""The block types of ggml as data: how many bits where. What the numbers mean is in `grids` and `layouts`.

Source: the block structures of ggml (`ggml-common.h`) and its quantizers (`ggml-quants.c`), MIT licence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from auto_round.schemes import QuantizationScheme

__all__ = ["BLOCK_TYPES", "SUPER_BLOCK", "BlockType", "by_bits", "prefixed"]

SUPER_BLOCK = 256
"""Weights of a super-block."""

Rounding = Literal["half even", "half up", "half away"]


@dataclass(frozen=True)
class BlockType:
    """One way ggml stores a row of weights.

    Attributes:
        name: as ggml spells it, in lower case.
        ggml: its number in files.
        bits: bits of a code.
        group: weights that share a scale.
        block: weights of a block; rows are whole blocks.
        nbytes: bytes of a block.
        signed: whether a weight is `scale * code`, code around zero; otherwise it is `scale * code + minimum`.
        rounding: what becomes of a weight half way between two codes, as in ggml's own quantizer.
        super_bits: bits of a group's quantized scale (and minimum), None where scales are float16 themselves.
    """

    name: str
    ggml: int
    bits: int
    group: int
    block: int
    nbytes: int
    signed: bool
    rounding: Rounding
    super_bits: int | None = None

    @property
    def bits_per_weight(self) -> float:
        """Bits a weight costs, scales included."""
        return self.nbytes * 8 / self.block

    @property
    def low(self) -> int:
        """The least code; -127 where one scale serves both signs."""
        if not self.signed:
            return 0
        return -127 if self.bits == 8 else -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """The largest code."""
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def super_group(self) -> int:
        """Groups of a super-block; 1 where there is none."""
        return self.block // self.group

    def scheme_fields(self) -> dict[str, Any]:
        """The fields of a scheme that belong to the type; there is nothing to choose."""
        fields = {"bits": self.bits, "group_size": self.group, "sym": self.signed}
        if self.super_bits is not None:
            fields |= {"super_bits": self.super_bits, "super_group_size": self.super_group}
        return fields

    def differs(self, scheme: QuantizationScheme) -> str | None:
        """What a scheme asks for that the type does not have, or None."""
        for name, value in self.scheme_fields().items():
            asked = getattr(scheme, name)
            if asked != value and not (asked is None and name.startswith("super")):
                return f"{self.name} has {name}={value}, not {asked}"
        return None


BLOCK_TYPES: dict[str, BlockType] = {
    t.name: t
    for t in (
        BlockType("q4_0", 2, 4, 32, 32, 18, True, "half up"),
        BlockType("q4_1", 3, 4, 32, 32, 20, False, "half up"),
        BlockType("q5_0", 6, 5, 32, 32, 22, True, "half up"),
        BlockType("q5_1", 7, 5, 32, 32, 24, False, "half up"),
        BlockType("q8_0", 8, 8, 32, 32, 34, True, "half away"),
        BlockType("q2_k", 10, 2, 16, SUPER_BLOCK, 84, False, "half even", 4),
        BlockType("q3_k", 11, 3, 16, SUPER_BLOCK, 110, True, "half even", 6),
        BlockType("q4_k", 12, 4, 32, SUPER_BLOCK, 144, False, "half even", 6),
        BlockType("q5_k", 13, 5, 32, SUPER_BLOCK, 176, False, "half even", 6),
        BlockType("q6_k", 14, 6, 16, SUPER_BLOCK, 210, True, "half even", 8),
    )
}
"""By name."""


def prefixed(block_type: BlockType) -> str:
    """The registered name of the data type of a block type."""
    return f"gguf_{block_type.name}"


def by_bits(signed: bool, super_blocks: bool) -> dict[int, BlockType]:
    """The types of one kind by their bits."""
    return {
        t.bits: t for t in BLOCK_TYPES.values() if t.signed == signed and (t.super_bits is not None) == super_blocks
    }
