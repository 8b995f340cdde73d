# SPDX-License-Identifier: Apache-2.0
"""One plugin from its source to its claims; whatever it does wrong stays with it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Mapping

import pluggy

from auto_round import hookspecs
from auto_round.data_type.register import declarations
from auto_round.errors import AutoRoundError, ContractError, PluginError
from auto_round.names import did_you_mean
from auto_round.plugins.declared import check_declared, claim_module, forget, note_import
from auto_round.plugins.offered import collect
from auto_round.plugins.records import Plugin, Source
from auto_round.plugins.tracing import trace_if_asked
from auto_round.torch_defaults import ordinary_defaults

__all__ = ["HOOKS", "STRICT", "load", "strict"]

STRICT = "AUTO_ROUND_STRICT_PLUGINS"
HOOKS = ("quant_tensor", "schemes", "exporters")
SLOW = 1.0
"""Seconds from which on a plugin is told that listings wait for it."""
_SLOW_NOTE = (
    "it took {:.1f} s to load, and every listing waits for that: name what is heavy in Lazy records, which are "
    "imported when they are asked for."
)

logger = logging.getLogger(__name__)


class _RefusedError(PluginError):
    """The plugin is made for another version of core."""


def strict() -> bool:
    """Whether a failing plugin should fail the program."""
    return os.environ.get(STRICT, "0") not in ("", "0")


def load(source: Source, modules: Mapping[str, Plugin], *, raising: bool = False) -> Plugin:
    """Import a plugin, check it and collect what it offers.

    Args:
        modules: the plugins known so far and to come, by module; what is declared in theirs is not this one's.
        raising: raise what goes wrong, after the rollback, instead of recording it.
    """
    plugin = Plugin(source)
    start = len(declarations())
    known = {*modules, source.module}
    began = time.perf_counter()
    try:
        # What it prints is no part of what a listing says, which programs read.
        with ordinary_defaults(), contextlib.redirect_stdout(sys.stderr):
            plugin.loaded = source.load()
            if source.module:
                claim_module(source.module)
                note_import(source.module, start)
            _check_api(plugin)
            plugin.claims = collect(_manager(plugin), plugin)
        if source.module:
            check_declared(source.module, known)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, and what panicking native code raises, are no Exception
        # A plugin given by hand was imported by somebody else; what it declared is not ours to undo.
        if not raising and source.module:
            forget(source.module, modules, start)
        plugin.claims = []
        plugin.state = "refused" if isinstance(error, _RefusedError) else "broken"
        plugin.reason = _sentence(error, source)
        if raising:
            raise
        if strict():
            raise PluginError(f"{plugin.label} is {plugin.state}: {plugin.reason}") from error
        if plugin.state == "broken":
            plugin.traceback = "".join(traceback.format_exception(error))
        logger.warning("%s is %s and left out: %s", plugin.label, plugin.state, plugin.reason)
    seconds = time.perf_counter() - began
    if seconds >= SLOW:
        plugin.notes = (_SLOW_NOTE.format(seconds),)
    return plugin


def _check_api(plugin: Plugin) -> None:
    # An entry point may name an object; the statement then stands in it or in its module.
    places = (plugin.loaded, sys.modules.get(plugin.source.module))
    stated = next((p.AUTO_ROUND_API for p in places if hasattr(p, "AUTO_ROUND_API")), "1.0")
    form = re.fullmatch(r"(\d+)\.(\d+)", stated) if isinstance(stated, str) else None
    if form is None:
        raise ContractError(f'AUTO_ROUND_API is {stated!r}; it is written as "1.0".')
    asked = (int(form[1]), int(form[2]))
    ours = hookspecs.API_VERSION
    told = f"it is made for version {stated} of the plugin interface, and this core has {ours[0]}.{ours[1]}"
    if asked > ours:
        raise _RefusedError(f"{told}: pip install --upgrade autoround-core.")
    if asked[0] < ours[0]:
        raise _RefusedError(f"{told}: pip install --upgrade {plugin.owner}.")


def _manager(plugin: Plugin) -> pluggy.PluginManager:
    """A manager that holds this plugin alone, so that what one plugin breaks is no other's."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(plugin.loaded, plugin.source.name)
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        unknown = [c.name for c in manager.get_hookcallers(plugin.loaded) or [] if not c.has_spec()]
        version = ".".join(map(str, hookspecs.API_VERSION))
        hints = "".join(did_you_mean(name, HOOKS) for name in unknown)
        raise ContractError(
            f"hook {', '.join(unknown)} does not exist in version {version} of the plugin interface{hints or '.'}"
        ) from error
    trace_if_asked(manager)
    return manager


def _sentence(error: BaseException, source: Source) -> str:
    if isinstance(error, SystemExit):
        return f"it ended the program (SystemExit: {error}) instead of loading."
    if isinstance(error, ModuleNotFoundError) and error.name and f"{source.module}.".startswith(f"{error.name}."):
        return (
            f"its metadata names the module {source.module}, which is not there: "
            f"pip install --force-reinstall {source.distribution}, or pip uninstall it."
        )
    text = " ".join(str(error).split())
    if isinstance(error, AutoRoundError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
