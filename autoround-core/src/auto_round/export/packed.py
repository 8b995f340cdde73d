# SPDX-License-Identifier: Apache-2.0
"""Containers: checkpoints whose layers lie in packings that data types bring along."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from auto_round.errors import ContractError
from auto_round.export.checkpoint import CheckpointFormat

if TYPE_CHECKING:
    import torch

    from auto_round.export.packing import Packing
    from auto_round.plan import CachePlan, LayerSpec
    from auto_round.tuning.result import LayerResult

__all__ = ["ContainerFormat"]


class ContainerFormat(CheckpointFormat):
    """Stores each layer in the first packing that takes it.

    Attributes:
        only: the one packing a user asked for by name, None to choose.
    """

    only: Packing | None = None

    def with_packing(self, packing: Packing) -> ContainerFormat:
        """The same container for whom nothing but this packing will do; its name becomes the packing's."""
        strict = copy.copy(self)
        strict.only, strict.name = packing, packing.name
        return strict

    def candidates(self) -> Sequence[Packing]:
        """Packings in the order they are tried."""
        return [self.only] if self.only is not None else self.plugins.packings(self.name)

    def packing(self, layer: LayerSpec) -> Packing:
        """The packing a layer is stored in.

        Raises:
            ContractError: none takes it; `refuses` says so first.
        """
        for packing in self.candidates():
            if self.refusal(packing, layer) is None:
                return packing
        raise ContractError(f"no packing of format {self.name} takes {layer.name}.")

    def refusal(self, packing: Packing, layer: LayerSpec) -> str | None:
        """Why a layer that is planned to be quantized cannot be stored in a packing here, or None."""
        assert layer.data_type is not None
        return packing.refuses(layer.data_type.name, layer.scheme, layer.shape)

    def refuses(self, layer: LayerSpec) -> str | None:
        assert layer.data_type is not None
        reasons: dict[str, None] = {}
        for packing in self.candidates():
            reason = self.refusal(packing, layer)
            if reason is None:  # those after it are not asked: a model may have many thousand layers
                return None
            reasons[reason] = None
        return "; ".join(reasons) or f"no installed plugin has a packing of {layer.data_type.name} for it."

    def scale_dtype(self, layer: LayerSpec) -> torch.dtype | None:
        return self.packing(layer).scale_dtype(layer.dtype)

    def bits_per_weight(self, layer: LayerSpec) -> float:
        assert layer.data_type is not None
        return self.packing(layer).bits_per_weight(layer.data_type, layer.scheme, layer.shape)

    def cache_packing(self, cache: CachePlan) -> Packing | None:
        """The packing that knows how scales of keys and values are written, None if none does."""
        name, scheme = cache.data_type.name, cache.scheme
        return next((p for p in self.candidates() if p.describe_cache(name, scheme)), None)

    def refuses_cache(self, cache: CachePlan) -> str | None:
        if self.cache_packing(cache) is None:
            return f"no installed plugin writes them for data type {cache.data_type.name}"
        return None

    def pack_cache(self, cache: CachePlan, frozen: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        packing = self.cache_packing(cache)
        assert packing is not None
        return packing.pack_cache(frozen, dtype)

    def pack(self, result: LayerResult) -> Mapping[str, torch.Tensor]:
        assert result.codes is not None
        return self.packing(result.layer).pack(result.codes)
