# SPDX-License-Identifier: Apache-2.0
"""What a plugin says it has, before anything heavy is imported: a name, a line of summary, where the thing is."""

from __future__ import annotations

import contextlib
import importlib
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from auto_round.errors import ContractError
from auto_round.torch_defaults import ordinary_defaults

__all__ = ["LazyDataType", "LazyFormat", "LazyPacking"]


@dataclass(frozen=True)
class _Lazy:
    """A name and where the object behind it is.

    Attributes:
        name: the name people and files use.
        target: `"module:attribute"`, imported when the object is asked for.
        summary: one line for listings.
    """

    name: str
    target: str
    summary: str = ""

    def load(self) -> Any:
        """Import the module and return the attribute; a class is called without arguments.

        Raises:
            ContractError: the target is not `module:attribute`, or the module has no such attribute.
        """
        module_name, _, attribute = self.target.partition(":")
        if not module_name or not attribute:
            raise ContractError(f"{self.name}: the target {self.target!r} is not of the form 'module:attribute'.")
        # What it prints is no part of what a listing says, which programs read.
        with ordinary_defaults(), contextlib.redirect_stdout(sys.stderr):
            return self._found(importlib.import_module(module_name), attribute)

    def _found(self, module: ModuleType, attribute: str) -> Any:
        try:
            loaded = getattr(module, attribute)
        except AttributeError as error:
            raise ContractError(f"{self.name}: module {module.__name__} has no {attribute}.") from error
        return loaded() if isinstance(loaded, type) else loaded


@dataclass(frozen=True)
class LazyDataType(_Lazy):
    """A data type; the target is a `DataType`, or a class of one."""


@dataclass(frozen=True)
class LazyFormat(_Lazy):
    """An output format; the target is an `OutputFormat`, or a class of one.

    Attributes:
        reads: the `quant_method` of checkpoints that its `reader` makes plain models of, "" if there is none.
    """

    reads: str = ""


@dataclass(frozen=True)
class LazyPacking(_Lazy):
    """How one data type lies in a container it does not own; the target is a `Packing`, or a class of one.

    Attributes:
        format: name of the container, e.g. `auto_round`. The packing's own `name` is what files record.
    """

    format: str = ""
