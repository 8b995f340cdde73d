# SPDX-License-Identifier: Apache-2.0
"""The three hooks a plugin may answer. Each returns what the plugin adds; none registers anything by side effect.

A hooks module should be light: name the heavy things as `"module:attribute"` in a `Lazy*` record and core imports them
when one is asked for, so that listings need no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

from auto_round.lazy import LazyDataType, LazyFormat, LazyPacking

if TYPE_CHECKING:
    from auto_round.schemes import QuantizationScheme

__all__ = ["API_VERSION", "PROJECT", "LazyDataType", "LazyFormat", "LazyPacking", "hookimpl"]

PROJECT = "auto_round"
API_VERSION = (1, 0)
"""A plugin states the version it was written for as `AUTO_ROUND_API = "1.0"`; absent means 1.0."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a plugin's function as the answer to the hook of the same name."""


@hookspec
def quant_tensor() -> Iterable[Any]:  # type: ignore[empty-body]
    """Data types: `LazyDataType` or `DataType` records."""


@hookspec
def schemes() -> Mapping[str, QuantizationScheme]:  # type: ignore[empty-body]
    """Named schemes."""


@hookspec
def exporters() -> Iterable[Any]:  # type: ignore[empty-body]
    """Output formats, and packings for containers that others own: `LazyFormat`, `LazyPacking` or the objects."""
