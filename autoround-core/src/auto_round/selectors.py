# SPDX-License-Identifier: Apache-2.0
"""Which layers a key of `layer_config` means.

A key is, in this order, the first of these that matches a layer:

1. the exact name of a layer;
2. a run of whole components of its name: `layers.1` or `self_attn.q_proj`, never a part of a component, so `layers.1`
   is not `layers.11`;
3. a glob (with `*`, `?` or `[...]`), on the whole name or on a run of whole components up to its end;
4. a regular expression, if it has a character that only those use, or after the prefix `re:`; searched in the name.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Container, Mapping, Sequence
from typing import TypeVar

from auto_round.errors import PlanError
from auto_round.names import did_you_mean

__all__ = ["select", "select_all"]

Value = TypeVar("Value")

_GLOB = re.compile(r"[*?\[]")
_REGEX = re.compile(r"[\\^$()|+*?\[{]")


def select_all(
    entries: Mapping[str, Value], names: Sequence[str], *, aside: Container[str] = ()
) -> dict[str, list[Value]]:
    """For every layer the values of the keys that mean it, the most general first, so that the last one decides.

    Args:
        aside: layers that are meant only by keys that mean no others.

    Raises:
        PlanError: keys that match no layer, or are no valid regular expression.
    """
    found: dict[str, list[tuple[int, Value]]] = {name: [] for name in names}
    problems = []
    for key, value in entries.items():
        try:
            rank, matched = select(key, names)
        except re.error as error:
            problems.append(f"layer_config: {key!r} is no valid regular expression: {error}.")
            continue
        if not matched:
            parts = {part for name in names for part in name.split(".") if not part.isdigit()}
            problems.append(
                f"layer_config: {key!r} matches no layer{did_you_mean(key, [*names, *sorted(parts)]) or '.'}"
            )
        for name in [name for name in matched if name not in aside] or matched:
            found[name].append((rank, value))
    if problems:
        raise PlanError(problems)
    # sorted() is stable: among keys of one kind, the later one decides.
    return {name: [v for _, v in sorted(ranked, key=lambda rv: -rv[0])] for name, ranked in found.items()}


def select(key: str, names: Sequence[str]) -> tuple[int, list[str]]:
    """The layers a key means, and which kind of key it turned out to be: 0 exact, 1 components, 2 glob, 3 regex."""
    if key.startswith("re:"):
        pattern = re.compile(key[3:])
        return 3, [n for n in names if pattern.search(n)]
    kinds: list[Callable[[str], bool]] = [lambda name: name == key, lambda name: f".{key}." in f".{name}."]
    if _GLOB.search(key):
        kinds.append(lambda name: any(fnmatch.fnmatchcase(tail, key) for tail in _tails(name)))
    for rank, matches in enumerate(kinds):
        matched = [n for n in names if matches(n)]
        if matched:
            return rank, matched
    if _REGEX.search(key):
        pattern = re.compile(key)
        return 3, [n for n in names if pattern.search(n)]
    return 3, []


def _tails(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]
