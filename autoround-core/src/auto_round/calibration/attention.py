# SPDX-License-Identifier: Apache-2.0
"""Which attention is computed by rows while calibration data flows: whatever `rows_of_attention` can do, on CPUs.

Models ask torch for it, by whichever way of their own, and that is where they are answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from auto_round.calibration.rows_of_attention import attend

__all__ = ["attention_by_rows"]


def attention_by_rows(device: torch.device) -> AbstractContextManager[object]:
    """Have `scaled_dot_product_attention` computed by rows in this thread, on CPUs; elsewhere nothing changes.

    Masks that add something, or differ between samples or heads, dropout and float64 are left to torch.
    """
    return _ByRows() if device.type == "cpu" else nullcontext()


class _ByRows(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            answer = _attention(*args, **kwargs)
            if answer is not None:
                return answer
        return func(*args, **kwargs)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor | None:
    """Arguments are torch's; None where this is not for us."""
    tensors = (query, key, value)
    plain = all(x.dim() == 4 and x.numel() and x.device.type == "cpu" and x.dtype == query.dtype for x in tensors)
    if not plain or query.dtype not in (torch.bfloat16, torch.float32) or dropout_p:
        return None
    heads, readers = query.shape[1], key.shape[1]
    shared = readers in (1, heads) or (enable_gqa and heads % readers == 0)
    alike = query.shape[0] == key.shape[0] and key.shape[:3] == value.shape[:3] and query.shape[3] == key.shape[3]
    if not (shared and alike):
        return None
    scale = query.shape[3] ** -0.5 if scale is None else scale
    if is_causal and attn_mask is None:
        return attend(query, key, value, None, scale)
    seen = None if is_causal else _seen(attn_mask, (query.shape[2], key.shape[2]))
    return None if seen is None else attend(query, key, value, seen, scale)


def _seen(mask: torch.Tensor | None, lengths: tuple[int, int]) -> torch.Tensor | None:
    """Which keys each query may look at, bool [L, S]; None where that is not all there is to a mask."""
    if mask is None:
        return torch.ones(lengths, dtype=torch.bool)
    if mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[2:] != lengths:
        return None
    if any(size > 1 and stride for size, stride in zip(mask.shape[:2], mask.stride()[:2], strict=True)):
        return None
    one = mask[0, 0]
    return one if bool(one.any(-1).all()) else None
