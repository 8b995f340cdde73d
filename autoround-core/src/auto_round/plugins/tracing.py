# SPDX-License-Identifier: Apache-2.0
"""A log line for every hook call: which plugin, which hook, how long. Off unless `AUTO_ROUND_TRACE=1`."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence

import pluggy

__all__ = ["trace_if_asked"]

VARIABLE = "AUTO_ROUND_TRACE"

logger = logging.getLogger(__name__)


def trace_if_asked(manager: pluggy.PluginManager) -> None:
    """Log the hook calls of `manager` at level INFO if the environment asks for it; otherwise change nothing."""
    if os.environ.get(VARIABLE, "0") in ("", "0"):
        return
    started: list[float] = []

    def before(hook_name: str, methods: Sequence[pluggy.HookImpl], arguments: Mapping[str, object]) -> None:
        started.append(time.perf_counter())

    def after(
        outcome: pluggy.Result[object],
        hook_name: str,
        methods: Sequence[pluggy.HookImpl],
        arguments: Mapping[str, object],
    ) -> None:
        milliseconds = 1000 * (time.perf_counter() - started.pop())
        if methods:
            plugins = ", ".join(method.plugin_name for method in methods)
            ending = "" if outcome.exception is None else f", {type(outcome.exception).__name__}"
            logger.info("plugin %s: %s() took %.1f ms%s", plugins, hook_name, milliseconds, ending)

    manager.add_hookcall_monitoring(before, after)
