# SPDX-License-Identifier: Apache-2.0
"""The registry: what schemes, data types, formats and packings there are, and who makes them mean something.

Plugins are found in metadata and imported when something is first asked for; what they only named is imported when it
is asked for itself. A plugin that fails is one line of `report`, and an error when something of its is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from auto_round.data_type import DataType
from auto_round.errors import AutoRoundError, SchemeError, UnknownNameError
from auto_round.export import OutputFormat, Packing
from auto_round.names import normalise
from auto_round.plugins.catalogue import Catalogue
from auto_round.plugins.checks import make
from auto_round.plugins.explain import explain
from auto_round.plugins.holdings import LOCK, SCRIPT, Holdings
from auto_round.plugins.loading import strict
from auto_round.plugins.records import Claim, Kind, Listed, Plugin, PluginReport, Provenance
from auto_round.plugins.reporting import report_on
from auto_round.schemes import QuantizationScheme

if TYPE_CHECKING:
    from auto_round.model.reader import WeightReader

__all__ = ["Registry", "default_registry"]


class Registry:
    """Answers for names. All names compare as `names.normalise` says; `distribution:NAME` settles conflicts.

    Every question may raise `UnknownNameError` (nobody offers the name; says which package does, if one is known to),
    `ConflictError` (two plugins claim it), `PluginError` (the plugin that offers it is blocked, broken or made for
    another version of core) and `ContractError` (what it offers is not what it should be).
    """

    def __init__(
        self,
        *,
        entry_points: bool = True,
        allow: Iterable[str] | None = None,
        block: Iterable[str] | None = None,
        script: bool = False,
        path: Sequence[str] | None = None,
    ) -> None:
        """Make a registry; nothing is read or imported before the first question.

        Args:
            entry_points: whether installed plugins are found; without, only what `register` was given is there.
            allow: plugins or distributions to use, no others; None for all.
            block: plugins or distributions not to use. If neither list is given, `AUTO_ROUND_DTYPES` decides.
            script: whether functions that no plugin declared are data types here.
            path: folders in which installed plugins are looked for, instead of `sys.path`.
        """
        self._plugins = Holdings(entry_points=entry_points, allow=allow, block=block, script=script, path=path)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, the registry of a process is that of the process which reads it; one of one's own stays where it is.

        Raises:
            TypeError: it is one of those.
        """
        if self is not default_registry():
            raise TypeError("a registry of one's own cannot be pickled, nor can models that were loaded with it.")
        return default_registry, ()

    def scheme(self, name: str) -> QuantizationScheme:
        """The scheme of a name."""
        found: QuantizationScheme = self._claim("scheme", name).thing
        return found

    def scheme_names(self) -> list[str]:
        """Every scheme, as spelt by who offers it; in qualified form where two plugins claim the name."""
        return self._plugins.catalogue.names("scheme")

    def add_scheme(self, name: str, scheme: QuantizationScheme) -> None:
        """Add a scheme, or replace one for this registry; loads nothing.

        Raises:
            SchemeError: the name or the scheme is none.
        """
        if not isinstance(name, str) or not name.strip() or not isinstance(scheme, QuantizationScheme):
            raise SchemeError(f"a scheme is added as a name and a QuantizationScheme, not {name!r} and {scheme!r}.")
        self._plugins.add_scheme(name, scheme)

    def remove_scheme(self, name: str) -> None:
        """Remove a scheme that was added; if it replaced one of a plugin, that one is back."""
        if not self._plugins.remove_scheme(name):
            owner = self._claim("scheme", name).plugin.label
            raise UnknownNameError(f"scheme {name} was not added by this program; it belongs to {owner} and stays.")

    def data_type(self, name: str) -> DataType:
        """The data type registered under exactly this name; the same object each time."""
        found: DataType = make(self._claim("data type", name), self)
        return found

    def data_type_for(self, scheme: QuantizationScheme, recorded: Collection[str] = ()) -> DataType:
        """The data type of a scheme's weights, its name completed with bits and symmetry.

        For every base, `block_<data_type>` if groups are two-dimensional, then `<data_type>`: the base, the base with
        the bits, with `_sym` or `_asym`, with both; the first that exists. Two plugins whose names complete the same
        one are in conflict, so that nobody's schemes change for what else is installed.

        Args:
            recorded: names that a checkpoint was made with; where one of them completes the scheme's, it is meant.
        """
        catalogue = self._plugins.catalogue
        tried = _completions(catalogue, scheme)
        known = {normalise(name) for name in recorded}
        tried = [name for name in tried if normalise(name) in known] or tried
        claims: dict[Plugin, Claim] = {}
        for name in tried:
            claim = catalogue.find("data type", name)
            if claim is not None:
                claims.setdefault(claim.plugin, claim)
        meant = catalogue.only("data type", scheme.data_type, list(claims.values()))
        if meant is None:
            raise explain(catalogue, "data type", scheme.data_type, tried)
        found: DataType = make(meant, self)
        return found

    def data_type_names(self) -> list[str]:
        """Every data type, as `scheme_names`."""
        return self._plugins.catalogue.names("data type")

    def output_format(self, name: str) -> OutputFormat:
        """The output format of a name; the same object each time."""
        found: OutputFormat = make(self._claim("format", name), self)
        return found

    def format_names(self) -> list[str]:
        """Every output format, as `scheme_names`."""
        return self._plugins.catalogue.names("format")

    def weight_reader(self, quantization_config: Mapping[str, Any]) -> WeightReader | None:
        """What reads checkpoints that are quantized in that way, None if no plugin does.

        Args:
            quantization_config: the entry of a checkpoint's config.json.
        """
        method = quantization_config.get("quant_method")
        for listed in self.listing("format"):
            if method and getattr(listed.thing, "reads", "") == method and listed.state == "ready":
                reader = self.output_format(listed.name).reader(quantization_config)
                if reader is not None:
                    return reader
        return None

    def packing(self, name: str, takes: Callable[[Packing], bool] = lambda _packing: True) -> Packing:
        """The packing that files record under a name, or under one of its aliases; all are loaded to find an alias.

        Args:
            takes: whether a packing can be meant, asked where several go by one alias: existing files call several
                layouts by one name, and the data type of the layer tells which.
        """
        catalogue = self._plugins.catalogue
        claim = catalogue.find("packing", name)
        if claim is None:
            owners, rest = catalogue.split(name)
            claims = [(c, rest if c.plugin in owners else name) for c in catalogue.claims("packing")]
            loaded = dict(self._made(c for c, _ in claims))
            known = [c for c, alias in claims if c in loaded and _goes_by(loaded[c], {alias, name})]
            if len(known) > 1:
                known = [c for c in known if takes(loaded[c])]
            claim = catalogue.only("packing", name, known)
        if claim is None:
            raise explain(catalogue, "packing", name)
        found: Packing = make(claim, self)
        return found

    def packings(self, format: str) -> list[Packing]:
        """The packings of a container. One that cannot be loaded, or whose name two plugins claim, is left out."""
        catalogue = self._plugins.catalogue
        claims = [c for c in catalogue.claims("packing") if normalise(c.container) == normalise(format)]
        contested = [c for c in claims if catalogue.rivals(c)]
        for claim in contested:
            self._plugins.warn(
                f"packing {claim.name} of {claim.plugin.label} is left out: another plugin claims its name."
            )
        return [packing for _, packing in self._made(c for c in claims if c not in contested)]

    def provenance(self, data_type: str | DataType) -> Provenance:
        """The plugin, distribution and version that make the name of a data type mean something.

        Args:
            data_type: a name, or what was found under one, which is clear even where two plugins claim the name.
        """
        if isinstance(data_type, str):
            claim = self._claim("data type", data_type)
        else:
            made = (c for c in self._plugins.catalogue.claims("data type") if c.made is data_type)
            claim = next(made, None) or self._claim("data type", data_type.name)
        source = claim.plugin.source
        return Provenance(source.name, source.distribution, source.version)

    def listing(self, kind: Kind) -> list[Listed]:
        """Every name of a kind with its plugin, conflicts included; imports nothing but the plugins."""
        catalogue = self._plugins.catalogue
        listed = []
        for claim in catalogue.claims(kind):
            source = claim.plugin.source
            state: Literal["ready", "conflict"] = "conflict" if catalogue.rivals(claim) else "ready"
            who = (source.name, source.distribution, source.version)
            listed.append(Listed(claim.name, *who, state, claim.summary, claim.thing))
        return listed

    def report(self) -> list[PluginReport]:
        """Every plugin, with what it offers or why it does not."""
        catalogue = self._plugins.catalogue
        lines = [report_on(plugin, catalogue) for plugin in catalogue.plugins]
        return [line for line in lines if line.name != SCRIPT or line.state != "empty"]

    @property
    def warnings(self) -> list[str]:
        """What is odd and stops nothing: a listed name that nothing has, a distribution installed twice."""
        _ = self._plugins.catalogue
        return self._plugins.warnings

    def digest(self) -> str:
        """Names and versions of the working plugins, one line; equal where two processes have the same ones."""
        working = [r for r in self.report() if r.state in ("loaded", "conflict")]
        return ", ".join(sorted(f"{r.name}={r.distribution}=={r.version}" for r in working))

    def register(self, plugin: object, name: str | None = None) -> None:
        """Add a plugin object: a module, or anything with hooks. Adding it again under its name changes nothing.

        Raises:
            ConflictError: another object is registered under the name.
            ContractError: the plugin breaks the contract; nothing of it is kept.
            PluginError: it is made for another version of core, or fails.
        """
        self._plugins.register(plugin, name)

    def unregister(self, name: str) -> None:
        """Remove a plugin that `register` added.

        Raises:
            UnknownNameError: none was added under the name.
        """
        self._plugins.unregister(name)

    def _claim(self, kind: Kind, name: str) -> Claim:
        catalogue = self._plugins.catalogue
        claim = catalogue.find(kind, name)
        if claim is None:
            raise explain(catalogue, kind, name)
        return claim

    def _made(self, claims: Iterable[Claim]) -> list[tuple[Claim, Packing]]:
        made = []
        for claim in claims:
            try:
                made.append((claim, make(claim, self)))
            except AutoRoundError as error:
                if strict():
                    raise
                self._plugins.warn(str(error))
        return made


def _completions(catalogue: Catalogue, scheme: QuantizationScheme) -> list[str]:
    owners, rest = catalogue.split(scheme.data_type)
    qualifier = scheme.data_type[: len(scheme.data_type) - len(rest)] if owners else ""
    bases = [f"{qualifier}block_{rest}"] if isinstance(scheme.group_size, tuple) else []
    bases.append(scheme.data_type)
    symmetry = "_sym" if scheme.sym else "_asym"
    return [base + end for base in bases for end in ("", str(scheme.bits), symmetry, f"{scheme.bits}{symmetry}")]


def _goes_by(packing: Packing, names: set[str]) -> bool:
    return not {normalise(n) for n in names}.isdisjoint(normalise(alias) for alias in packing.aliases)


@functools.cache
def _default() -> Registry:
    return Registry(script=True)


def default_registry() -> Registry:
    """The registry of the process, made when first asked for: installed plugins, and what the program declares."""
    with LOCK:
        return _default()
