# SPDX-License-Identifier: Apache-2.0
"""Microscaling weights as compressed-tensors stores them; where that library packs, it packs here too.

The tensors are those of `auto_round_mxfp.packing`. What differs between the rules for the shared exponent is in the
codes; a reader that simulates activations takes a rule of its own, whatever the scheme says.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from auto_round.data_type import Codes
from auto_round.errors import PluginError
from auto_round_mxfp.elements import E2M1, E2M3, E4M3, Element
from auto_round_mxfp.names import activation_element
from auto_round_mxfp.packing import BLOCK, MicroscalingPacking
from auto_round_mxfp.rounding import codes_of, values_of

if TYPE_CHECKING:
    from auto_round.schemes import QuantizationScheme

__all__ = ["MxFp4", "MxFp6", "MxFp8"]


class _CompressedTensors(MicroscalingPacking):
    """The tensors and words that one of its formats has.

    Attributes:
        helpers: module of the library, and names in it of what packs and unpacks; None where nothing is packed.
    """

    format = "llm_compressor"
    helpers: ClassVar[tuple[str, str, str] | None] = None

    def refuses(self, data_type: str, scheme: QuantizationScheme, shape: tuple[int, int]) -> str | None:
        reason = super().refuses(data_type, scheme, shape)
        if reason is None and scheme.quantizes_activations:
            assert scheme.act_bits is not None
            element = activation_element(scheme.act_data_type, scheme.act_bits)
            if element not in (E2M1, E2M3, E4M3) or scheme.act_group_size != BLOCK:
                asked = f"{scheme.act_data_type} with {scheme.act_bits} bits in groups of {scheme.act_group_size}"
                return f"{self.name} has activations e2m1, e2m3 or e4m3 in blocks of {BLOCK}, not {asked}"
        return reason

    def describe(self, data_type: str, scheme: QuantizationScheme) -> Mapping[str, Any]:
        """A config group of compressed-tensors, without its targets."""
        group = {"format": self.name, "weights": _arguments(scheme.bits, dynamic=False)}
        if scheme.quantizes_activations:
            assert scheme.act_bits is not None
            group["input_activations"] = _arguments(scheme.act_bits, dynamic=True)
        return group

    def pack(self, codes: Codes) -> Mapping[str, torch.Tensor]:
        if self.helpers is None:
            return super().pack(codes)
        # In bfloat16, which holds every value of 4 and 6 bits, because the library reads signs out of it.
        values = values_of(codes.tensors["codes"], self._element(codes.scheme)).bfloat16()
        packed: torch.Tensor = self._helper(1)(values)
        return {"weight_packed": packed, "weight_scale": codes.tensors["scale"]}

    def unpack(
        self,
        tensors: Mapping[str, torch.Tensor],
        data_type: str,
        scheme: QuantizationScheme,
        shape: tuple[int, int],
        dtype: torch.dtype,
    ) -> Codes:
        if self.helpers is None:
            return super().unpack(tensors, data_type, scheme, shape, dtype)
        values: torch.Tensor = self._helper(2)(tensors["weight_packed"], *shape, dtype=torch.float32)
        codes = codes_of(values.contiguous(), self._element(scheme))
        return Codes(data_type, scheme, shape, dtype, {"codes": codes, "scale": tensors["weight_scale"]})

    def _element(self, scheme: QuantizationScheme) -> Element:
        return next(e for e in self.elements if e.bits == scheme.bits)

    def _helper(self, which: int) -> Any:
        assert self.helpers is not None
        try:
            return getattr(
                importlib.import_module(f"compressed_tensors.compressors.{self.helpers[0]}"), self.helpers[which]
            )
        except (ImportError, AttributeError) as error:
            raise PluginError(
                f"format {self.format} packs {self.name} with compressed-tensors 0.20 or later, which is not "
                f'installed: pip install "autoround-mxfp[llm_compressor]".'
            ) from error


class MxFp4(_CompressedTensors):
    """Elements e2m1, two to a byte."""

    name = "mxfp4-pack-quantized"
    elements = (E2M1,)
    helpers = ("nvfp4.helpers", "pack_fp4_to_uint8", "unpack_fp4_from_uint8")


class MxFp6(_CompressedTensors):
    """Elements e2m3, four to three bytes."""

    name = "mxfp6-pack-quantized"
    elements = (E2M3,)
    helpers = ("mxfp6.helpers", "pack_fp6_to_uint8", "unpack_fp6_from_uint8")


class MxFp8(_CompressedTensors):
    """Elements e4m3, as they are."""

    name = "mxfp8-quantized"
    elements = (E4M3,)


def _arguments(bits: int, *, dynamic: bool) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "float",
        "symmetric": True,
        "strategy": "group",
        "group_size": BLOCK,
        "dynamic": dynamic,
        "scale_dtype": "torch.uint8",
        "zp_dtype": "torch.uint8",
    }
