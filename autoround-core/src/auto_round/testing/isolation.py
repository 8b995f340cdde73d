# SPDX-License-Identifier: Apache-2.0
"""A process that knows no plugins but those a test names; nothing a test declares stays behind.

    def test_the_scheme_is_there():
        with isolated(auto_round_acme) as registry:
            assert registry.scheme("ACME4").bits == 4
            assert "ACME4" in PRESET_SCHEMES

This module needs no test framework; `auto_round.testing.fixtures` has the same as a fixture of pytest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from auto_round.plugins import Registry
from auto_round.plugins.declared import as_before

__all__ = ["isolated"]


@contextlib.contextmanager
def isolated(*plugins: object) -> Iterator[Registry]:
    """A registry without entry points, in the place of the process-wide one for as long as the context lasts.

    It holds core, the given plugins (modules, or objects with hooks), what is registered with it later, and functions
    marked with `register_dtype` that are no plugin's. Afterwards everything declared or added meanwhile is gone.
    """
    registry = Registry(entry_points=False, script=True)
    with as_before(), mock.patch("auto_round.plugins.registry._default", return_value=registry):
        for plugin in plugins:
            registry.register(plugin)
        yield registry
