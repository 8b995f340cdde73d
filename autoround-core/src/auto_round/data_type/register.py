# SPDX-License-Identifier: Apache-2.0
"""`@register_dtype`: a data type as one function.

The decorator only declares. Which plugin a declaration belongs to is decided when that plugin is loaded; what a
program's own script declares belongs to the script and is live at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from auto_round.errors import ContractError
from auto_round.names import did_you_mean

__all__ = ["OFFERS", "Declaration", "accepted_offers", "declarations", "register_dtype"]

Function = TypeVar("Function", bound=Callable[..., Any])

OFFERS: dict[str, str] = {
    "tensor": "what to quantize, [out_features, in_features] or, for activations, [..., features]",
    "bits": "bits of a code",
    "group_size": "-1 per row, 0 per tensor, n per n consecutive values, (m, n) per block",
    "v": "learnt offset of the rounding, in codes, float32, shaped like the grouped tensor; neutral 0",
    "min_scale": "learnt factor on the lower end of a group's range, float32 [groups]; neutral 1.0",
    "max_scale": "learnt factor on the upper end of a group's range, float32 [groups]; neutral 1.0",
    "scale_dtype": "torch.dtype in which the format keeps scales",
    "q_scale_thresh": "smallest magnitude of a scale",
    "weight_fp8_max_scale": "learnt factor on a first-stage scale; neutral 1.0",
    "imatrix": "importance of each input channel, float32 [in_features], the sum of its squares over calibration",
    "tensor_min": "lower end of each group's range, at most 0, float32 [groups], or the least value observed",
    "tensor_max": "upper end of each group's range, at least 0, float32 [groups], or the largest value observed",
    "init_scale": "scale of each group found by the data type's own search, float32 [groups, 1]",
    "global_scale": "scale of the whole tensor, shared by layers that a runtime fuses, float32 scalar",
    "super_bits": "bits of a quantized scale",
    "super_group_size": "groups that make a super-group",
    "data_type": "the registered name under which the function was looked up",
}
"""Every keyword core can offer a data type's function, with what it holds."""

ALWAYS = frozenset({"tensor", "bits", "group_size", "v", "min_scale", "max_scale", "scale_dtype", "data_type"})
"""Offers that are there whenever a function is called: only these may be asked for without a default."""


@dataclass(frozen=True)
class Declaration:
    """One decorated function and the names it claims."""

    names: tuple[str, ...]
    function: Callable[..., Any]
    offers: frozenset[str]


_declared: list[Declaration] = []


def declarations() -> list[Declaration]:
    """Everything declared in this process, in order; the live list, which the plugin loader takes its own out of."""
    return _declared


def accepted_offers(function: Callable[..., Any]) -> frozenset[str]:
    """The offers a function takes, read once from its signature; all of them if it has `**kwargs`.

    Raises:
        ContractError: the function asks for something core does not know, or takes no `tensor`.
    """
    parameters = inspect.signature(function).parameters
    where = _where(function)
    named = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and n != "self"]
    for name in named:
        if name not in OFFERS:
            raise ContractError(
                f"{where} asks for {name!r}, which core does not offer{did_you_mean(name, OFFERS) or '.'} "
                f"It may ask for: {', '.join(OFFERS)}."
            )
    if "tensor" not in named:
        raise ContractError(f"{where} has no parameter `tensor`, the first of a data type's function.")
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return frozenset(OFFERS)
    return frozenset(named)


def register_dtype(names: str | Iterable[str]) -> Callable[[Function], Function]:
    """Declare a function as a data type, under one name or several.

    The function takes `tensor` and any of `OFFERS` by keyword and returns `(qdq, scale, zp)`: `qdq` of the shape and
    dtype of `tensor`, differentiable through straight-through rounding; `scale` and `zp` whatever describes the grid.
    Offers that are not in `ALWAYS` need a default.

    Raises:
        ContractError: a signature core cannot serve, or no name.
    """
    if callable(names):
        raise ContractError('register_dtype takes a name: write @register_dtype("my_type") above the function.')
    claimed = (names,) if isinstance(names, str) or not isinstance(names, Iterable) else tuple(names)
    if not claimed or not all(isinstance(n, str) and n.strip() for n in claimed):
        raise ContractError(f"register_dtype takes a name or a list of names, not {names!r}.")

    def declare(function: Function) -> Function:
        offers = accepted_offers(function)
        required = {n for n, p in inspect.signature(function).parameters.items() if p.default is p.empty}
        missing = [name for name in OFFERS if name in offers & required - ALWAYS]
        if missing:
            raise ContractError(
                f"{_where(function)} asks for {' and '.join(missing)} without a default, which not every call offers: "
                f"give {'it' if len(missing) == 1 else 'them'} one."
            )
        _declared.append(Declaration(claimed, function, offers))
        return function

    return declare


def _where(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', function)}"
