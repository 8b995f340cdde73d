# SPDX-License-Identifier: Apache-2.0
"""Finding plugins and answering for them."""

from auto_round.plugins.registry import PluginReport, Provenance, Registry, default_registry

__all__ = ["PluginReport", "Provenance", "Registry", "default_registry"]
