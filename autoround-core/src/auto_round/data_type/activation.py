# SPDX-License-Identifier: Apache-2.0
"""Activations as the quantized model sees them: the same arithmetic while tuning, in memory and after loading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from auto_round.data_type.record import DataType
from auto_round.data_type.untouched import check_untouched, writes_into

if TYPE_CHECKING:
    from auto_round.schemes import QuantizationScheme

__all__ = ["INPUT_PREFIX", "ActivationQuantizer", "SharedInput", "frozen_offers"]

INPUT_PREFIX = "input_"


def frozen_offers(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What static activations were frozen to, out of the tensors of a layer's codes."""
    return {n.removeprefix(INPUT_PREFIX): t for n, t in tensors.items() if n.startswith(INPUT_PREFIX)}


class ActivationQuantizer:
    """Quantizes and dequantizes the input of one layer.

    Args:
        data_type: what the activations are stored in while a runtime computes.
        scheme: the layer's scheme, every field filled in.
        frozen: what `DataType.freeze` returned, for static activations; empty for dynamic ones.
    """

    def __init__(
        self, data_type: DataType, scheme: QuantizationScheme, frozen: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        self.data_type = data_type
        self.scheme = scheme
        self.frozen = dict(frozen or {})
        offers: dict[str, Any] = {
            "bits": scheme.act_bits,
            "group_size": scheme.act_group_size,
            "data_type": data_type.name,
            # Runtimes keep the scales of activations as they compute them.
            "scale_dtype": torch.float32,
            "v": 0.0,
            # On the CPU even where a model is being built without memory: these are numbers, not part of it.
            "min_scale": torch.ones(1, device="cpu"),
            "max_scale": torch.ones(1, device="cpu"),
        }
        self._checked = False
        self._offers = {name: value for name, value in offers.items() if name in data_type.offers}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The input as the quantized model sees it: same shape, dtype and device; straight-through gradient."""
        if not x.numel():  # an expert that no token was sent to; data types need not know of it
            return x
        offers = {**self._offers, **self.frozen}
        moved = {n: o.to(x.device) if isinstance(o, torch.Tensor) else o for n, o in offers.items()}
        if self._checked:
            seen, _, _ = self.data_type.quant_tensor(x, **moved)
            return seen
        writes = writes_into(x)
        seen, _, _ = self.data_type.quant_tensor(x, **moved)
        check_untouched(x, writes, self.data_type, "the input of a layer")
        self._checked = True
        return seen


class SharedInput:
    """One quantized input for several layers that are fed the same.

    Args:
        quantizer: what each of them would do by itself.
        users: how many they are; after so many calls with one tensor it is let go of.
    """

    def __init__(self, quantizer: ActivationQuantizer, users: int) -> None:
        self.quantizer = quantizer
        self._users = users
        self._seen: tuple[torch.Tensor, int, bool, torch.Tensor] | None = None
        self._left = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The input as the quantized model sees it, see `ActivationQuantizer`."""
        version, learning = x._version, torch.is_grad_enabled()  # noqa: SLF001 - tells that it was written to
        if self._seen is not None and self._seen[0] is x and self._seen[1:3] == (version, learning):
            quantized = self._seen[3]
        else:
            quantized, self._left = self.quantizer(x), self._users
            self._seen = (x, version, learning, quantized)
        self._left -= 1
        if self._left <= 0:
            self._seen = None
        return quantized
