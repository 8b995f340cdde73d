# SPDX-License-Identifier: Apache-2.0
"""The formats a user names, and where each is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from auto_round.errors import SchemeError, UnknownNameError
from auto_round.export.packed import ContainerFormat
from auto_round.names import normalise

if TYPE_CHECKING:
    from auto_round.export.format import OutputFormat
    from auto_round.plugins import Registry

__all__ = ["folder_of", "folders_of", "formats_named", "formats_to_write"]


def formats_named(registry: Registry, format: str | Sequence[str] | None) -> list[OutputFormat]:
    """The formats behind a name, several joined by commas, or a list; none for None.

    Raises:
        SchemeError: one of them is named twice.
        UnknownNameError: one that no plugin offers.
    """
    names = [part.strip() for part in format.split(",")] if isinstance(format, str) else list(format or ())
    if len({normalise(n) for n in names}) != len(names):
        raise SchemeError(f"format {format!r} names one format twice.")
    return [_format_named(registry, name) for name in names]


def formats_to_write(registry: Registry, format: str | Sequence[str] | None) -> list[OutputFormat]:
    """The same, and at least one.

    Raises:
        SchemeError: none, or one of them twice.
        UnknownNameError: one that no plugin offers.
    """
    formats = formats_named(registry, format)
    if not formats:
        raise SchemeError(f"format={format!r} names no format to write: say one, as `auto-round formats` lists them.")
    return formats


def _format_named(registry: Registry, name: str) -> OutputFormat:
    """A format, or a container with one of its packings insisted on."""
    try:
        return registry.output_format(name)
    except UnknownNameError:
        try:
            packing = registry.packing(name)
        except UnknownNameError:
            packing = None
        if packing is None:
            raise
        container = registry.output_format(packing.format)
        if not isinstance(container, ContainerFormat):
            raise
        return container.with_packing(packing)


def folders_of(output_dir: Path, formats: Sequence[OutputFormat]) -> list[Path]:
    """The directory itself for one format, a directory per format below it for several."""
    if len(formats) == 1:
        return [output_dir]
    return [output_dir / folder_of(f) for f in formats]


def folder_of(output_format: OutputFormat) -> str:
    """What its directory is called beside those of other formats."""
    return output_format.name.replace(":", "-")
