# SPDX-License-Identifier: Apache-2.0
"""What a file holds is what was tuned: codes, their cost, every layout they are stored in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from auto_round.data_type import Codes, DataType
from auto_round.export.named import NamedCodes
from auto_round.export.packing import Packing
from auto_round.plugins import Registry
from auto_round.schemes import QuantizationScheme
from auto_round.testing.conformance.base import Declared, weight_like
from auto_round.tuning.layer import TunableLinear

__all__ = ["StoredTests"]


class StoredTests(Declared):
    """encode, decode and packings, under learnt parameters as the tuner leaves them."""

    def test_decoded_codes_are_the_tuned_weight(
        self,
        data_type: DataType,
        scheme: QuantizationScheme,
        shape: tuple[int, int],
        dtype: torch.dtype,
        scale_dtype: torch.dtype | None,
    ) -> None:
        for search in (False, True):
            layer = self._learnt(data_type, scheme, weight_like(shape, dtype), scale_dtype, search)
            tuned = layer.quantized_weight().detach()
            result = layer.finish()
            assert result.codes is not None
            assert torch.equal(result.weight, tuned), (
                f"decode(encode(w)) must equal quant_tensor(w) bit for bit; {int((result.weight != tuned).sum())} of "
                f"{tuned.numel()} weights differ (search={search})."
            )

    def test_codes_know_what_they_are(self, data_type: DataType, scheme: QuantizationScheme) -> None:
        codes = self._codes(data_type, scheme, weight_like(self.shapes[0], torch.bfloat16))
        assert codes.data_type == self.name, "codes must carry the registered name of the data type."
        assert codes.shape == self.shapes[0]
        assert codes.dtype == torch.bfloat16, "codes must carry the dtype of the weight."
        for name, tensor in codes.tensors.items():
            assert not tensor.requires_grad, f"code tensor {name} must be detached."

    def test_files_give_back_what_they_were_given(
        self, data_type: DataType, scheme: QuantizationScheme, registry: Registry, tmp_path: Path
    ) -> None:
        """Every packing that takes the layer: the layout it announces, and the same weight after unpacking."""
        if not data_type.encodes:
            pytest.skip("declared: encodes = False")
        weight = weight_like(self.shapes[0], torch.bfloat16)
        scheme = scheme.resolved()
        taken = [p for p in self._packings(registry) if p.refuses(self.name, scheme, self.shapes[0]) is None]
        if scheme.quantizes_activations:
            taken = [p for p in taken if scheme.act_dynamic is not False]
        assert taken or scheme.act_dynamic is False, "no packing takes it, not even the named codes of auto_round."
        for packing in taken:
            codes = self._codes(data_type, scheme, weight, packing.scale_dtype(torch.bfloat16))
            packed = dict(packing.pack(codes))
            announced = packing.layout(scheme, self.shapes[0])
            # The dtype of a scale that follows the model's is announced as one that holds them all.
            shapes = {name: tuple(tensor.shape) for name, tensor in packed.items()}
            told = f"packing {packing.name}: layout() is not what pack() returns."
            assert shapes == {name: s for name, (s, _) in announced.items()}, told
            save_file({n: t.contiguous().clone() for n, t in packed.items()}, tmp_path / "layer.safetensors")
            read = {n: t.to(announced[n][1]) for n, t in load_file(tmp_path / "layer.safetensors").items()}
            again = packing.unpack(read, self.name, scheme, self.shapes[0], torch.bfloat16)
            same = torch.equal(data_type.decode(again), data_type.decode(codes))
            assert same, f"packing {packing.name}: unpack(pack(codes)) decodes to another weight."

    def test_bits_per_weight_are_those_of_the_file(
        self, data_type: DataType, scheme: QuantizationScheme, registry: Registry
    ) -> None:
        """Within what the tightest layout takes, for a weight large enough that no padding shows."""
        shape = (256, 1024)
        scheme = scheme.resolved()
        if data_type.supports(scheme, shape):
            pytest.skip("the data type does not take this shape")
        weight, sizes = weight_like(shape, torch.bfloat16), {}
        for packing in self._packings(registry):
            if isinstance(packing, NamedCodes) or packing.refuses(self.name, scheme, shape) is not None:
                continue
            if scheme.quantizes_activations and scheme.act_dynamic is False:
                continue
            packed = packing.pack(self._codes(data_type, scheme, weight, packing.scale_dtype(torch.bfloat16)))
            sizes[packing.name] = sum(t.nbytes for t in packed.values()) * 8 / (shape[0] * shape[1])
        if not sizes:
            pytest.skip("it has no packing of its own")
        told = data_type.bits_per_weight(scheme, shape)
        closest = min(sizes.values(), key=lambda size: abs(size - told))
        assert abs(closest - told) <= 0.02 * told + 0.01, f"bits_per_weight says {told:.3f}; files take {sizes}."

    def _packings(self, registry: Registry) -> list[Packing]:
        from auto_round.export.packed import ContainerFormat

        formats = [registry.output_format(name) for name in registry.format_names()]
        containers = [f for f in formats if isinstance(f, ContainerFormat)]
        return [packing for container in containers for packing in container.candidates()]

    def _codes(
        self,
        data_type: DataType,
        scheme: QuantizationScheme,
        weight: torch.Tensor,
        scale_dtype: torch.dtype | None = None,
    ) -> Codes:
        codes = self._learnt(data_type, scheme, weight, scale_dtype, search=False).finish().codes
        assert codes is not None
        return codes

    def _learnt(
        self,
        data_type: DataType,
        scheme: QuantizationScheme,
        weight: torch.Tensor,
        scale_dtype: torch.dtype | None,
        search: bool,
    ) -> TunableLinear:
        """A layer with parameters somewhere within their bounds."""
        if not data_type.encodes:
            pytest.skip("declared: encodes = False")
        layer = self.layer(data_type, scheme, weight, scale_dtype=scale_dtype, search=search)
        layer.make_learnable(minmax=True)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in layer.learnt.items():
                noise = torch.rand(parameter.shape, generator=generator)
                parameter.copy_(noise - 0.5 if name == "v" else 1.0 - 0.3 * noise)
            layer.clamp_learnt()
        return layer
