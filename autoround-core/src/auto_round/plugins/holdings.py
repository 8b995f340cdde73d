# SPDX-License-Identifier: Apache-2.0
"""The plugins a registry has: those found, those given, and what the program itself adds; kept up to date."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from types import ModuleType

from auto_round.errors import AutoRoundError, ConflictError, ContractError, PluginError, UnknownNameError
from auto_round.names import normalise
from auto_round.plugins.builtin import builtin_source
from auto_round.plugins.catalogue import Catalogue
from auto_round.plugins.declared import Declared, snapshot
from auto_round.plugins.discovery import discover
from auto_round.plugins.loading import load
from auto_round.plugins.records import Claim, Plugin, Source
from auto_round.plugins.selection import Selection
from auto_round.schemes import QuantizationScheme

__all__ = ["LOCK", "SCRIPT", "Holdings"]

SCRIPT = "script"
"""Name of the pseudo plugin that stands for the program itself."""

LOCK = threading.RLock()
"""One for all registries: importing a plugin changes the process, and a plugin may ask another registry."""

logger = logging.getLogger(__name__)


class Holdings:
    """See `Registry` for the arguments; nothing is read or imported before `catalogue` is first asked for."""

    def __init__(
        self,
        *,
        entry_points: bool,
        allow: Iterable[str] | None,
        block: Iterable[str] | None,
        script: bool,
        path: Sequence[str] | None,
    ) -> None:
        self._entry_points = entry_points
        self._allow = None if allow is None else tuple(allow)
        self._block = None if block is None else tuple(block)
        self._path = path
        self._script = Plugin(Source(SCRIPT, "", "", "", lambda: None))
        self._takes_declared = script
        self._declared = Declared()
        self._given: list[Plugin] = []
        self._found: list[Plugin] = []
        self._added: dict[str, tuple[str, QuantizationScheme]] = {}
        self._warnings: list[str] = []
        self._is_loaded = False
        self._current: Catalogue | None = None
        self._seen = snapshot()

    @property
    def catalogue(self) -> Catalogue:
        """What is offered now; the first time, installed plugins are found and imported."""
        with LOCK:
            if not self._is_loaded:
                self._load_installed()
            seen = snapshot()
            if self._current is None or self._seen != seen:
                self._seen = seen
                self._script.claims = [
                    Claim(self._script, "scheme", name, scheme, overrides=True) for name, scheme in self._added.values()
                ]
                declared = self._declared.claims(self._modules(), self._script if self._takes_declared else None)
                self._current = Catalogue([*self._found, *self._given, self._script], declared)
            return self._current

    @property
    def warnings(self) -> list[str]:
        """What was found odd so far and stopped nothing."""
        return list(self._warnings)

    def warn(self, sentence: str) -> None:
        """Keep and log a sentence, once."""
        if sentence not in self._warnings:
            self._warnings.append(sentence)
            logger.warning("%s", sentence)

    def register(self, plugin: object, name: str | None) -> None:
        """See `Registry.register`."""
        name = name or str(getattr(plugin, "__name__", type(plugin).__name__))
        module = plugin.__name__ if isinstance(plugin, ModuleType) else ""
        source = Source(name, "", str(getattr(plugin, "__version__", "")), module, lambda: plugin)
        with LOCK:
            same = [p for p in self._given if normalise(p.source.name) == normalise(name)]
            if any(p.loaded is plugin for p in same):
                return
            if same:
                raise ConflictError(f"a plugin called {name} is registered already; unregister it or use another name.")
            try:
                loaded = load(source, self._modules(), raising=True)
            except AutoRoundError as error:
                kind = ContractError if isinstance(error, ContractError) else PluginError
                raise kind(f"plugin {name} cannot be registered: {error}") from error
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # as in `loading.load`
                raise PluginError(f"plugin {name} cannot be registered: {type(error).__name__}: {error}") from error
            self._given.append(loaded)
            self._current = None

    def unregister(self, name: str) -> None:
        """See `Registry.unregister`."""
        with LOCK:
            kept = [p for p in self._given if normalise(p.source.name) != normalise(name)]
            if len(kept) == len(self._given):
                raise UnknownNameError(f"no plugin {name!r} was registered here; installed ones can only be blocked.")
            self._given = kept
            self._current = None

    def add_scheme(self, name: str, scheme: QuantizationScheme) -> None:
        """See `Registry.add_scheme`. Takes no lock, so that a module may call it while a plugin is imported."""
        self._added = {**self._added, normalise(name): (name, scheme)}
        self._current = None

    def remove_scheme(self, name: str) -> bool:
        """Remove a scheme that was added; whether there was one."""
        kept = {key: entry for key, entry in self._added.items() if key != normalise(name)}
        removed = len(kept) < len(self._added)
        self._added = kept
        self._current = None
        return removed

    def _modules(self) -> dict[str, Plugin]:
        modules: dict[str, Plugin] = {}
        for plugin in (*self._found, *self._given):
            if plugin.source.module:
                modules.setdefault(plugin.source.module, plugin)
        return modules

    def _load_installed(self) -> None:
        # Set first: a plugin that asks this registry while it is imported sees what is there so far.
        self._is_loaded = True
        try:
            core = builtin_source()
            sources, odd = discover(self._path) if self._entry_points else ([], [])
            selection = Selection.of(self._allow, self._block)
            if self._entry_points:
                for sentence in (*odd, *selection.unmatched(sources)):
                    self.warn(sentence)
            self._found = [Plugin(source, "blocked", "it is still being loaded.") for source in (core, *sources)]
            for n, source in enumerate((core, *sources)):
                refusal = selection.refuses(source) if source is not core else None
                self._found[n] = Plugin(source, "blocked", refusal) if refusal else self._load(source)
                self._current = None
        except BaseException:
            self._is_loaded, self._found, self._current = False, [], None
            raise

    def _load(self, source: Source) -> Plugin:
        before = self._added
        plugin = load(source, self._modules())
        # Schemes that a plugin adds while it is imported are its own, and go if it goes.
        new = [entry for key, entry in self._added.items() if before.get(key) is not entry]
        self._added = before
        taken = {normalise(claim.name) for claim in plugin.claims if claim.kind == "scheme"}
        if plugin.state == "loaded":
            plugin.claims += [Claim(plugin, "scheme", n, s, made=s) for n, s in new if normalise(n) not in taken]
        return plugin
