# SPDX-License-Identifier: Apache-2.0
"""What core checks of an object before anybody gets it, and how a lazy record becomes that object."""

from __future__ import annotations

import copy
import inspect
import threading
from typing import TYPE_CHECKING, Any

from auto_round.data_type import DataType, FunctionDataType
from auto_round.data_type.register import accepted_offers
from auto_round.errors import ContractError, PluginError
from auto_round.export import OutputFormat, Packing
from auto_round.lazy import LazyDataType, LazyFormat, LazyPacking
from auto_round.plugins.records import Claim

if TYPE_CHECKING:
    from auto_round.plugins.registry import Registry

__all__ = ["check_data_type", "check_packing", "make"]

_LOCK = threading.Lock()
_CLASSES: dict[str, type[Any]] = {"data type": DataType, "format": OutputFormat, "packing": Packing}


def make(claim: Claim, registry: Registry) -> Any:
    """The object behind a claim, loaded once and checked.

    Raises:
        ContractError: it is not what its plugin said.
        PluginError: importing or making it failed.
    """
    if claim.made is None:
        try:
            made = _loaded(claim)
        except ContractError as error:
            raise ContractError(f"{claim.kind} {claim.name} of {claim.plugin.label}: {error}") from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # as in `loading.load`
            raise PluginError(
                f"{claim.kind} {claim.name} of {claim.plugin.label} cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        if isinstance(made, OutputFormat):
            # An object made at import time may be offered to several registries, each of which answers for itself.
            made = copy.copy(made)
            made.registry = registry
        # Imports run outside the lock: a module may itself ask for data types while another thread imports it.
        with _LOCK:
            claim.made = made if claim.made is None else claim.made
    return claim.made


def _loaded(claim: Claim) -> Any:
    thing = claim.thing
    if not isinstance(thing, LazyDataType | LazyFormat | LazyPacking):
        return thing
    made = thing.load()
    if isinstance(thing, LazyDataType) and inspect.isfunction(made):
        made = FunctionDataType(claim.name, made, accepted_offers(made))
    expected = _CLASSES[claim.kind]
    if not isinstance(made, expected):
        raise ContractError(f"{thing.target} is an object of type {type(made).__name__}, not of {expected.__name__}.")
    name = getattr(made, "name", None)
    if name != claim.name:
        raise ContractError(f"{thing.target} calls itself {name!r}, but its plugin offers it as {claim.name!r}.")
    if isinstance(made, DataType):
        check_data_type(made)
    if isinstance(made, Packing):
        check_packing(made)
        if made.format != claim.container:
            raise ContractError(
                f"{thing.target} is for format {made.format!r}, but is offered for {claim.container!r}."
            )
    return made


def check_data_type(data_type: DataType) -> None:
    """Refuse a data type without a function, or whose function asks for what core does not offer.

    Raises:
        ContractError: saying which.
    """
    if type(data_type).quant_tensor is DataType.quant_tensor:
        raise ContractError(f"{type(data_type).__name__} has no quant_tensor of its own.")
    if not isinstance(data_type.offers, frozenset | set):
        raise ContractError(f"{type(data_type).__name__}.offers must be a set of names.")


def check_packing(packing: Packing) -> None:
    """Refuse a packing that does not say where it belongs, or whose other names are none by which it is found again.

    Raises:
        ContractError: saying which.
    """
    if not isinstance(getattr(packing, "format", None), str):
        raise ContractError(f"{type(packing).__name__} does not say for which format it is: set `format`.")
    if isinstance(packing.aliases, str) or not all(isinstance(a, str) and a.strip() for a in packing.aliases):
        raise ContractError(f"{type(packing).__name__}.aliases must be a tuple of names, not {packing.aliases!r}.")
    if packing.recorded_as not in (None, *packing.aliases):
        raise ContractError(f"{type(packing).__name__}.recorded_as must be one of its aliases.")
