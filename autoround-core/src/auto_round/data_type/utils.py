# SPDX-License-Identifier: Apache-2.0
"""The names that data types written for this contract import from here; each lives where its subject does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from auto_round.data_type.grouping import reshape_pad_tensor_by_group_size, revert_tensor_by_pad
from auto_round.data_type.rounding import round_ste

__all__ = ["get_quant_func", "reshape_pad_tensor_by_group_size", "revert_tensor_by_pad", "round_ste"]


def get_quant_func(dtype: str, bits: int, sym: bool = True) -> tuple[Callable[..., Any], str]:
    """Look up the function of a data type, and the registered name it was found under.

    `dtype` is completed the way schemes are: as it is, with the bits, with `_sym` or `_asym`, with both.

    Raises:
        UnknownNameError: no installed plugin offers it.
    """
    # The one arrow that points upwards, taken only when called: a lookup by name is a question to the plugins.
    from auto_round.plugins import default_registry
    from auto_round.schemes import QuantizationScheme

    found = default_registry().data_type_for(QuantizationScheme(bits=bits, sym=sym, data_type=dtype))
    return found.quant_tensor, found.name
