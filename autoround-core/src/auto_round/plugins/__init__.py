# SPDX-License-Identifier: Apache-2.0
"""Finding plugins and answering for them."""

from auto_round.plugins.records import Listed, PluginReport, Provenance
from auto_round.plugins.registry import Registry, default_registry

__all__ = ["Listed", "PluginReport", "Provenance", "Registry", "default_registry"]
