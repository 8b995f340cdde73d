# SPDX-License-Identifier: Apache-2.0
"""How names of data types, schemes, formats and plugins compare, and how many are told, the same way everywhere."""

import difflib
from collections.abc import Iterable, Sequence

__all__ = ["and_more", "did_you_mean", "nearest", "normalise"]


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
