# SPDX-License-Identifier: Apache-2.0
"""Core as a plugin: what it offers itself goes the way everything goes."""

from __future__ import annotations

import importlib
from functools import partial

from auto_round import __version__
from auto_round.plugins.records import Source

__all__ = ["builtin_source"]

_MODULE = "auto_round.export.builtin"


def builtin_source() -> Source:
    """The source of the plugin `core`; its version needs no metadata, so frozen programs have it too."""
    return Source("core", "autoround-core", __version__, _MODULE, partial(importlib.import_module, _MODULE))
