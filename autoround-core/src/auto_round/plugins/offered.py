# SPDX-License-Identifier: Apache-2.0
"""What a plugin's hooks return, checked and told in the words of whoever wrote the plugin."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import pluggy

from auto_round.data_type import DataType
from auto_round.errors import ContractError
from auto_round.export import OutputFormat, Packing
from auto_round.lazy import LazyDataType, LazyFormat, LazyPacking
from auto_round.names import normalise
from auto_round.plugins.checks import check_data_type, check_packing
from auto_round.plugins.records import Claim, Kind, Plugin
from auto_round.schemes import QuantizationScheme

__all__ = ["collect"]


def collect(manager: pluggy.PluginManager, plugin: Plugin) -> list[Claim]:
    """Call the hooks of the one plugin `manager` holds.

    Raises:
        ContractError: a hook returned something else than it should, or one name twice.
    """
    claims: list[Claim] = []
    for hook, read in (("quant_tensor", _data_types), ("schemes", _schemes), ("exporters", _exporters)):
        caller = getattr(manager.hook, hook)
        if not caller.get_hookimpls():
            continue
        results = caller()
        if not results:
            raise ContractError(f"{hook}() returned None; to offer nothing, return an empty list or mapping.")
        claims += read(plugin, results[0])
    _check_unique(claims)
    return claims


def _data_types(plugin: Plugin, returned: Any) -> list[Claim]:
    claims = []
    wanted = "LazyDataType records or DataType objects"
    for item in _items("quant_tensor", returned, wanted):
        if not isinstance(item, LazyDataType | DataType):
            raise _unexpected("quant_tensor", item, wanted)
        if isinstance(item, DataType):
            _check_name("quant_tensor", item)
            check_data_type(item)
        claims.append(_claim(plugin, "quant_tensor", "data type", item))
    return claims


def _schemes(plugin: Plugin, returned: Any) -> list[Claim]:
    if not isinstance(returned, Mapping):
        raise ContractError(
            f"schemes() returned {_shown(returned)}; it returns a mapping of names to QuantizationScheme."
        )
    claims = []
    for name, scheme in returned.items():
        if not isinstance(name, str) or not name.strip():
            raise ContractError(f"schemes() returned the name {name!r}; a name is a string that is not empty.")
        if not isinstance(scheme, QuantizationScheme):
            raise ContractError(f"schemes() returned {_shown(scheme)} for {name!r}; expected a QuantizationScheme.")
        claims.append(Claim(plugin, "scheme", name, scheme, made=scheme))
    return claims


def _exporters(plugin: Plugin, returned: Any) -> list[Claim]:
    claims = []
    wanted = "LazyFormat and LazyPacking records, or OutputFormat and Packing objects"
    for item in _items("exporters", returned, wanted):
        if isinstance(item, LazyFormat | OutputFormat):
            claims.append(_claim(plugin, "exporters", "format", item))
        elif isinstance(item, LazyPacking | Packing):
            claim = _claim(plugin, "exporters", "packing", item)
            if isinstance(item, Packing):
                check_packing(item)
            claim.container = item.format
            if not isinstance(claim.container, str) or not claim.container.strip():
                raise ContractError(f"exporters() returned the packing {item.name!r} without the name of its format.")
            claims.append(claim)
        else:
            raise _unexpected("exporters", item, wanted)
    return claims


def _items(hook: str, returned: Any, wanted: str) -> list[Any]:
    if isinstance(returned, str | bytes | Mapping) or not isinstance(returned, Iterable):
        raise ContractError(f"{hook}() returned {_shown(returned)}; it returns a list of {wanted}.")
    return list(returned)


def _claim(plugin: Plugin, hook: str, kind: Kind, item: Any) -> Claim:
    _check_name(hook, item)
    lazy = isinstance(item, LazyDataType | LazyFormat | LazyPacking)
    summary = getattr(item, "summary", "") or ""
    return Claim(plugin, kind, item.name, item, str(summary), made=item if not lazy and kind != "format" else None)


def _check_name(hook: str, item: Any) -> None:
    name = getattr(item, "name", None)
    if not isinstance(name, str) or not name.strip():
        raise ContractError(
            f"{hook}() returned {_shown(item)} with the name {name!r}; a name is a string that is not empty."
        )


def _unexpected(hook: str, item: Any, wanted: str) -> ContractError:
    if inspect.isclass(item) and issubclass(item, DataType | OutputFormat | Packing):
        return ContractError(
            f"{hook}() returned the class {item.__name__}; return an object, {item.__name__}(), or a Lazy record."
        )
    return ContractError(f"{hook}() returned {_shown(item)} in its list; expected {wanted}.")


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _check_unique(claims: list[Claim]) -> None:
    seen: dict[tuple[Kind, str], Claim] = {}
    for claim in claims:
        first = seen.setdefault((claim.kind, normalise(claim.name)), claim)
        if first is not claim:
            spelt = claim.name if claim.name == first.name else f"{first.name} and {claim.name}"
            raise ContractError(f"its hooks return the {claim.kind} {spelt} twice.")
