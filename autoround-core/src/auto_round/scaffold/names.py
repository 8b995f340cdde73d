# SPDX-License-Identifier: Apache-2.0
"""One name, and everything a package and its data type are called after it. Imports no torch."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass

from auto_round.errors import ConflictError, SchemeError
from auto_round.names import normalise
from auto_round.plugins import Registry
from auto_round.plugins.directory import bringing, known_distributions
from auto_round.plugins.records import Kind

__all__ = ["PackageNames", "check_free"]

PREFIX = "autoround-"
LONGEST = 40
_FORM = re.compile(r"[A-Za-z][A-Za-z0-9]*([-_.][A-Za-z0-9]+)*", re.ASCII)


@dataclass(frozen=True)
class PackageNames:
    """What things are called.

    Attributes:
        distribution: what is installed, `autoround-acme-nf4`.
        package: what is imported, `autoround_acme_nf4`.
        data_type: registered name of the data type, and its module, `acme_nf4`.
        scheme: named scheme, `ACME_NF4`.
        class_name: class of the data type, `AcmeNf4`.
    """

    distribution: str
    package: str
    data_type: str
    scheme: str
    class_name: str

    @classmethod
    def of(cls, name: str) -> PackageNames:
        """The names that follow from one; `autoround-` in front of it is understood.

        Raises:
            SchemeError: it cannot be the name of a package and of a module.
        """
        if not _FORM.fullmatch(name) or len(name) > LONGEST:
            raise SchemeError(
                f"{name!r} cannot name a package: it takes ASCII letters, digits and single dashes between them, "
                f"a letter first, {LONGEST} characters at most, such as my-type4."
            )
        parts = re.split(r"[-_.]", name.lower())
        if parts[0] == "autoround":
            parts = parts[1:]
        data_type = "_".join(parts)
        class_name = "".join(part.capitalize() for part in parts)
        if not data_type.isidentifier() or keyword.iskeyword(data_type) or keyword.iskeyword(class_name):
            raise SchemeError(f"{name!r} cannot name a data type: {data_type!r} cannot name a module of Python.")
        return cls(
            distribution=PREFIX + "-".join(parts),
            package="autoround_" + data_type,
            data_type=data_type,
            scheme=data_type.upper(),
            # Not one of the names that its modules take from elsewhere, such as Codes or Any.
            class_name=class_name if len(parts) > 1 else class_name + "Type",
        )


def check_free(names: PackageNames, registry: Registry) -> None:
    """Refuse names that somebody has: an installed plugin, or a distribution known to bring them.

    Raises:
        ConflictError: saying who.
    """
    if names.distribution in {"autoround-core", *(known.name for known in known_distributions())}:
        raise ConflictError(f"{names.distribution} is a distribution already; choose another name.")
    wanted: tuple[tuple[Kind, str], ...] = (("data type", names.data_type), ("scheme", names.scheme))
    for kind, name in wanted:
        owners = {e.distribution or e.plugin for e in registry.listing(kind) if normalise(e.name) == normalise(name)}
        owners |= {known.name for known in bringing(kind, [name])}
        if owners:
            raise ConflictError(f"the name of {kind} {name} is taken by {min(owners)}; choose another name.")
