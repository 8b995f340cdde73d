# SPDX-License-Identifier: Apache-2.0
"""How names of data types, schemes, formats, plugins and layers compare, and how many are told, everywhere the same."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["and_more", "did_you_mean", "experts_above", "nearest", "normalise", "prefix_change"]


def normalise(name: str) -> str:
    """Fold case, and `-` into `_`: `W4A16` and `w4a16` are one name, so are `acme-nf4` and `acme_nf4`."""
    return name.strip().lower().replace("-", "_")


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The `count` known names most like `name`, as they are written, best first; empty if none is close."""
    written = {normalise(k): k for k in known}
    return [written[m] for m in difflib.get_close_matches(normalise(name), written, n=count, cutoff=0.5)]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean A or B?"`, or nothing."""
    close = nearest(name, known)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def and_more(names: Sequence[str]) -> str:
    """The first of some names and how many follow, for a sentence about all of them."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def experts_above(expert_layer: str) -> str:
    """The name of all experts together: `mlp.experts` of `mlp.experts.3.up_proj`; empty for a shorter name."""
    return ".".join(expert_layer.split(".")[:-2])


def prefix_change(names: Mapping[str, str | None]) -> tuple[str, str]:
    """What stands before the blocks of a model in names, and what does in other names of the same; often nothing twice.

    Args:
        names: of layers, `model.layers.0.up_proj`, to their other names, `model.language_model.layers.0.up_proj`; None
            where there is none.
    """
    for name, other in names.items():
        if other is None or other == name:
            continue
        before, instead, same = name.split("."), other.split("."), []
        while before and instead and before[-1] == instead[-1]:
            same.append(before.pop())
            del instead[-1]
        numbered = [any(part.isdigit() for part in parts) for parts in (before, same)]
        if numbered == [False, True]:  # else something within blocks, or outside of them, has another name
            return "".join(f"{part}." for part in before), "".join(f"{part}." for part in instead)
    return "", ""
