# SPDX-License-Identifier: Apache-2.0
"""Finding plugins and answering for them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from auto_round.plugins.records import Listed, PluginReport, Provenance
    from auto_round.plugins.registry import Registry, default_registry

__all__ = ["Listed", "PluginReport", "Provenance", "Registry", "default_registry"]

_WHERE = {
    "Listed": "records",
    "PluginReport": "records",
    "Provenance": "records",
    "Registry": "registry",
    "default_registry": "registry",
}


def __getattr__(name: str) -> Any:
    # `import auto_round` asks `plugins.other_distribution` a question, and that must not import the plugin manager.
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
