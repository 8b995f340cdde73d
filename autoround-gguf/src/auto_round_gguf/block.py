# SPDX-License-Identifier: Apache-2.0
"""The data types: every block type of ggml as something that is tuned, searched, encoded and decoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from auto_round.data_type import Bounds, Codes, DataType, Runtime
from auto_round.data_type.kernels import chunks
from auto_round.errors import SchemeError
from auto_round_gguf.fused import CHUNK, dequantize, quantize, quantize_dequantize
from auto_round_gguf.grids import Factor, Grid, Searched, make_grid
from auto_round_gguf.schemes import LayerScheme
from auto_round_gguf.search import find_grid
from auto_round_gguf.types import BLOCK_TYPES, BlockType, by_bits, prefixed

if TYPE_CHECKING:
    from auto_round.schemes import QuantizationScheme
    from auto_round_gguf.importance import LayerImportance

__all__ = ["BlockDataType", "RecordedName", "grid_of", "grouped", "stored_tensors"]

RUNTIMES = (
    Runtime("llama.cpp", "b4000", "gguf", ("cpu", "cuda", "metal", "vulkan", "rocm", "sycl")),
    Runtime("transformers", "5.23", "gguf", note="from_pretrained(..., gguf_file=...) dequantizes it"),
    Runtime("transformers", "5.23", "auto_round", note="through this package"),
)


class BlockDataType(DataType):
    """A block type of ggml as a data type.

    Stored as `codes` [out_features, in_features], int8 or, for types with a minimum, uint8; `scale`, and `minimum`,
    [out_features, groups of a row]: float16, or for super-blocks their codes, int8 or uint8; then also `super_scale`,
    and `super_minimum`, float16 [out_features, super-blocks of a row]. A minimum of a super-block is stored negated.
    """

    encodes = True
    searches = True
    runtimes = RUNTIMES

    def __init__(self, kind: BlockType) -> None:
        self.name = prefixed(kind)
        self.kind = kind
        ends = "around zero" if kind.signed else "over the range of each group"
        scales = "with float16 scales" if kind.super_bits is None else f"with {kind.super_bits}-bit scales"
        self.summary = f"{kind.name.upper()}: {kind.bits} bits {ends}, groups of {kind.group} {scales}"
        # A searched scale cuts off what lies beyond; it may have to grow again, too. Those of a super-block stay: a
        # step of its largest moves all others too, which measured far worse than learning the rounding alone.
        factors = ("max_scale",) if kind.signed else ("min_scale", "max_scale")
        learnt = dict.fromkeys(() if kind.super_bits else factors, (0.0, 2.0))
        self.tuned_after_search: Mapping[str, Bounds] = {"v": None, **learnt}

    def block_type(self, bits: int) -> BlockType:
        """The block type meant."""
        return self.kind

    def quant_tensor(
        self,
        tensor: torch.Tensor,
        bits: int = 0,
        v: torch.Tensor | float = 0,
        min_scale: Factor = 1.0,
        max_scale: Factor = 1.0,
        init_scale: torch.Tensor | None = None,
        global_scale: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Quantize and dequantize.

        Args:
            init_scale: scale, and minimum where the type has one, of each group, as `search` found them: float32
                [groups, 1 or 2].
            global_scale: of super-blocks, what these are multiples of: float32 [super-blocks, 1 or 2].

        Returns:
            the rounded tensor, the scale and the minimum of each group, float32 [groups, 1].
        """
        kind = self.block_type(bits)
        groups = grouped(tensor, kind)
        grid = grid_of(groups, kind, min_scale, max_scale, init_scale, global_scale)
        rounded = quantize_dequantize(groups, _offset(v, groups), grid, kind, tensor.dtype)
        return rounded.reshape(tensor.shape), grid.scale, grid.minimum

    def supports(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        kind = self.block_type(scheme.bits)
        if shape[1] % kind.block:
            return (
                f"{kind.name} stores rows in blocks of {kind.block}, and {shape[1]} inputs are no whole number of them"
            )
        return kind.differs(scheme)

    def stacks(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> bool:
        return True

    def statistics(self, scheme: QuantizationScheme) -> frozenset[str]:
        """The importance of inputs, unless a file has it; at eight bits searching gains too little to look for it."""
        known = _importance(scheme)
        return frozenset() if scheme.bits == 8 or (known and known.given is not None) else frozenset({"imatrix"})

    def search(
        self,
        weight: torch.Tensor,
        scheme: QuantizationScheme,
        *,
        imatrix: torch.Tensor | None,
        scale_dtype: torch.dtype,
        **shared: torch.Tensor,
    ) -> Mapping[str, torch.Tensor]:
        """The grid of each group that fits it best, as `init_scale` and, of super-blocks, `global_scale`."""
        kind = self.block_type(scheme.bits)
        grouped(weight, kind)
        known = _importance(scheme)
        if known is not None:
            imatrix = known.settle(imatrix, weight.device)
        found = find_grid(weight, kind, imatrix)
        if found.supers is None:
            return {"init_scale": found.groups}
        return {"init_scale": found.groups, "global_scale": found.supers}

    def encode(self, weight: torch.Tensor, scheme: QuantizationScheme, **offers: Any) -> Codes:
        kind = self.block_type(scheme.bits)
        known = {name: offers.pop(name) for name in self.offers & set(offers)}
        if offers.keys() - {"scale_dtype"}:
            raise TypeError(f"{self.name}.encode takes no {', '.join(map(repr, offers))}")
        with torch.no_grad():
            groups = grouped(weight, kind)
            grid = grid_of(
                groups,
                kind,
                *(known.get(name, 1.0) for name in ("min_scale", "max_scale")),
                *(known.get(name) for name in ("init_scale", "global_scale")),
            )
            codes = quantize(groups, grid, _offset(known.get("v", 0), groups), kind)
        rows, cols = weight.shape
        tensors = {"codes": codes.reshape(rows, cols), **stored_tensors(grid, kind, rows)}
        return Codes(self.name, scheme, (rows, cols), weight.dtype, tensors)

    def decode(self, codes: Codes) -> torch.Tensor:
        kind, tensors = self.block_type(codes.scheme.bits), codes.tensors
        scale = _scale(tensors["scale"], tensors.get("super_scale"))
        minimum = None
        if not kind.signed:
            minimum = _scale(tensors["minimum"], tensors.get("super_minimum"))
            minimum = minimum if kind.super_bits is None else -minimum
        groups = tensors["codes"].reshape(-1, kind.group)
        out = torch.empty(groups.shape, dtype=codes.dtype, device=groups.device)
        for rows in chunks(groups, CHUNK):
            out[rows] = dequantize(groups[rows].float(), scale[rows], None if minimum is None else minimum[rows])
        return out.reshape(codes.shape)

    def bits_per_weight(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> float:
        return self.block_type(scheme.bits).bits_per_weight

    def describe(self) -> Mapping[str, Any]:
        kind = self.kind
        scale = "float16"
        if kind.super_bits is not None:
            scale = f"{kind.super_bits} bits, times one float16 for {kind.super_group} groups"
        return {
            "name": self.name,
            "summary": self.summary,
            "grid": f"{kind.low} to {kind.high}, times a scale" + ("" if kind.signed else ", plus a minimum"),
            "bits": str(kind.bits),
            "group_size": str(kind.group),
            "scale": scale + ("" if kind.signed else "; the minimum likewise"),
            "layout": f"{kind.block} weights in {kind.nbytes} bytes, {kind.bits_per_weight:g} bits per weight",
            "stored": " ".join((BlockDataType.__doc__ or "").split("\n\n")[1].split()),
        }


class RecordedName(BlockDataType):
    """Several block types under the one name that existing recipes use for them; bits tell which is meant."""

    def __init__(self, name: str, *, signed: bool, super_blocks: bool) -> None:
        self._kinds = by_bits(signed, super_blocks)
        super().__init__(next(iter(self._kinds.values())))
        self.name = name
        self.summary = f"{' or '.join(k.name.upper() for k in self._kinds.values())}, whichever has the bits"

    def block_type(self, bits: int) -> BlockType:
        found = self._kinds.get(bits)
        if found is None:
            raise SchemeError(f"{self.name} has {', '.join(map(str, sorted(self._kinds)))} bits, not {bits}.")
        return found

    def supports(self, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        if scheme.bits not in self._kinds:
            return f"{self.name} has {', '.join(map(str, sorted(self._kinds)))} bits, not {scheme.bits}"
        return super().supports(scheme, shape)

    def describe(self) -> Mapping[str, Any]:
        return {"name": self.name, "summary": self.summary}


def grouped(tensor: torch.Tensor, kind: BlockType) -> torch.Tensor:
    """The tensor as [groups, group size]; float64 becomes float32.

    Raises:
        SchemeError: rows that are no whole number of blocks.
    """
    if tensor.shape[-1] % kind.block:
        raise SchemeError(
            f"{kind.name} has blocks of {kind.block} weights; a row of {tensor.shape[-1]} is not made of them."
        )
    groups = tensor.reshape(-1, kind.group)
    return groups.float() if groups.dtype == torch.float64 else groups


def grid_of(
    groups: torch.Tensor,
    kind: BlockType,
    min_scale: Factor = 1.0,
    max_scale: Factor = 1.0,
    init_scale: torch.Tensor | None = None,
    global_scale: torch.Tensor | None = None,
) -> Grid:
    """The grid that offers describe."""
    searched = None if init_scale is None else Searched(init_scale, global_scale)
    return make_grid(groups, kind, min_scale, max_scale, searched)


def _importance(scheme: QuantizationScheme) -> LayerImportance | None:
    return scheme.importance if isinstance(scheme, LayerScheme) else None


def _offset(v: torch.Tensor | float, groups: torch.Tensor) -> torch.Tensor | None:
    if isinstance(v, torch.Tensor):
        return v.reshape(groups.shape)
    return torch.full(groups.shape, v, dtype=torch.float32, device=groups.device) if v else None


def stored_tensors(grid: Grid, kind: BlockType, rows: int) -> dict[str, torch.Tensor]:
    """The tensors of `Codes` that belong to a grid, without the codes themselves."""
    if kind.super_bits is None:
        found = {"scale": grid.scale.half()}
        if grid.minimum is not None:
            found["minimum"] = grid.minimum.half()
    else:
        assert grid.scale_codes is not None
        assert grid.super_scale is not None
        narrow = torch.int8 if kind.signed else torch.uint8
        found = {"scale": grid.scale_codes.to(narrow), "super_scale": grid.super_scale.half()}
        if grid.minimum_codes is not None:
            assert grid.super_minimum is not None
            found |= {"minimum": grid.minimum_codes.to(narrow), "super_minimum": grid.super_minimum.half()}
    return {name: tensor.reshape(rows, -1) for name, tensor in found.items()}


def _scale(codes: torch.Tensor, unit: torch.Tensor | None) -> torch.Tensor:
    """What is stored for the groups, as float32 [groups, 1]."""
    if unit is None:
        return codes.float().reshape(-1, 1)
    each = codes.numel() // max(unit.numel(), 1)
    return (codes.reshape(-1, each).float() * unit.float().reshape(-1, 1)).reshape(-1, 1)


Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 = (BlockDataType(BLOCK_TYPES[n]) for n in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0"))
Q2_K, Q3_K, Q4_K, Q5_K, Q6_K = (BlockDataType(BLOCK_TYPES[n]) for n in ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k"))
INT_ASYM_FLOAT_ZP = RecordedName("int_asym_float_zp", signed=False, super_blocks=False)
INT_ASYM_DQ = RecordedName("int_asym_dq", signed=False, super_blocks=True)
INT_SYM_DQ = RecordedName("int_sym_dq", signed=True, super_blocks=True)
