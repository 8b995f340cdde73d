# SPDX-License-Identifier: Apache-2.0
"""To whom the functions marked with `register_dtype` belong.

To the plugin in whose module, or below it, the function lives (the longest match, if several do); otherwise to the
plugin during whose import it was declared; otherwise to nobody, that is to the program itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from auto_round.data_type.record import FunctionDataType
from auto_round.data_type.register import Declaration, declarations
from auto_round.errors import ContractError
from auto_round.names import normalise
from auto_round.plugins.records import UNAVAILABLE, Claim, Plugin

__all__ = [
    "Declared",
    "as_before",
    "check_declared",
    "claim_module",
    "forget",
    "note_import",
    "owner_module",
    "snapshot",
]

_made_by: dict[int, tuple[Declaration, str]] = {}
"""Declarations made while a plugin was imported, by identity: with the module that was imported."""
_claimed_modules: set[str] = set()
"""Modules that some registry of this process was given as a plugin."""


def note_import(module: str, start: int) -> None:
    """Remember that everything declared since there were `start` declarations was declared importing `module`."""
    for declaration in declarations()[start:]:
        _made_by.setdefault(id(declaration), (declaration, module))


def claim_module(module: str) -> None:
    """Say that what is declared in a module, or below it, is a plugin's and not the program's."""
    _claimed_modules.add(module)


def snapshot() -> tuple[list[Declaration], int]:
    """Differs from an earlier one if what is declared, or whose it is, may have changed."""
    return list(declarations()), len(_claimed_modules)


@contextmanager
def as_before() -> Iterator[None]:
    """Afterwards, what is declared and whose it is are as they were."""
    declared, claimed = list(declarations()), set(_claimed_modules)
    try:
        yield
    finally:
        declarations()[:] = declared
        _claimed_modules.intersection_update(claimed)


def forget(module: str, modules: Mapping[str, Plugin], start: int) -> None:
    """Take out of `declarations()` what belongs to a plugin that failed."""
    note_import(module, start)
    declared = declarations()
    declared[:] = [d for d in declared if owner_module(d, {*modules, module}) != module]


def owner_module(declaration: Declaration, modules: set[str]) -> str | None:
    """The module, of those given or claimed elsewhere, to which a declaration belongs; None for the program's own."""
    lives_in = declaration.function.__module__ or ""
    roots = [m for m in modules | _claimed_modules if m and (lives_in == m or lives_in.startswith(m + "."))]
    if roots:
        return max(roots, key=len)
    _, module = _made_by.get(id(declaration), (None, None))
    return module


def check_declared(module: str, modules: set[str]) -> None:
    """Refuse a plugin that declares one name for two functions.

    Raises:
        ContractError: naming both functions.
    """
    seen: dict[str, Declaration] = {}
    for declaration in declarations():
        if owner_module(declaration, modules) != module:
            continue
        for name in declaration.names:
            first = seen.setdefault(normalise(name), declaration)
            if _place(first) != _place(declaration):
                raise ContractError(f"{_place(first)} and {_place(declaration)} both declare the data type {name!r}.")


def _place(declaration: Declaration) -> str:
    function = declaration.function
    return f"{function.__module__}.{getattr(function, '__qualname__', function)}"


class Declared:
    """The claims that declarations make, each made once, so that a data type keeps its identity."""

    def __init__(self) -> None:
        self._claims: dict[tuple[int, str, Plugin], Claim] = {}

    def claims(self, plugins: Mapping[str, Plugin], script: Plugin | None) -> list[Claim]:
        """What is declared now; of several declarations of a name by one owner, the last, as in a notebook.

        Args:
            plugins: by module.
            script: who answers for what belongs to nobody; None leaves that out.
        """
        latest: dict[tuple[Plugin, str], Claim] = {}
        for declaration in declarations():
            module = owner_module(declaration, set(plugins))
            owner = script if module is None else plugins.get(module)
            if owner is None or owner.state in UNAVAILABLE:
                continue
            for name in declaration.names:
                key = (id(declaration), name, owner)
                if key not in self._claims:
                    made = FunctionDataType(name, declaration.function, declaration.offers)
                    self._claims[key] = Claim(owner, "data type", name, made, made.summary, made=made)
                latest[owner, normalise(name)] = self._claims[key]
        return list(latest.values())
