# SPDX-License-Identifier: Apache-2.0
"""(skeleton of the interface; see the docstrings)"""
from __future__ import annotations
from dataclasses import dataclass

@dataclass(frozen=True)
class Provenance:
    """Who makes a name mean something: recorded in checkpoints."""
    plugin: str
    distribution: str
    version: str

@dataclass(frozen=True)
class PluginReport:
    """One line of `auto-round plugins`."""
    name: str
    distribution: str
    version: str
    state: str      # loaded | blocked | broken | conflict ...
    reason: str
    data_types: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    packings: tuple[str, ...] = ()

class Registry: ...
def default_registry() -> Registry: ...
