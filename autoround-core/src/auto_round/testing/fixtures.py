# SPDX-License-Identifier: Apache-2.0
"""Fixtures of pytest for authors of data types: import them in `conftest.py`. The extra `testing` brings pytest.

from auto_round.testing.fixtures import isolated_registry
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from auto_round.plugins import Registry
from auto_round.testing.isolation import isolated

__all__ = ["isolated_registry"]


@pytest.fixture
def isolated_registry() -> Iterator[Registry]:
    """The process-wide registry of one test, without anything that is installed; see `isolation.isolated`.

    Plugins are added with `register`, as modules or as objects with hooks.
    """
    with isolated() as registry:
        yield registry
