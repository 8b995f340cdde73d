# SPDX-License-Identifier: Apache-2.0
"""Distributions that look installed, for tests of how plugins are found. Nothing is built and no installer runs.

    def test_my_plugin_is_found(tmp_path):
        fake = FakeDistribution(
            "autoround-acme",
            plugins={"acme": "autoround_acme"},
            modules={"autoround_acme": "from auto_round.data_type.register import register_dtype ..."},
        )
        with fake.installed(tmp_path):
            assert "acme_fp5" in Registry(allow=["acme"]).data_type_names()

This module needs no test framework.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from auto_round.data_type.register import declarations

__all__ = ["FakeDistribution", "importable"]

GROUP = "auto_round.dtypes"


@dataclass(frozen=True)
class FakeDistribution:
    """What an installer would leave behind: metadata, and modules.

    Attributes:
        name: of the distribution.
        version: of the distribution.
        plugins: entry points of the group `auto_round.dtypes`, name to `module` or `module:attribute`.
        modules: sources by dotted module name; indentation that all lines share is removed. A name with a dot lies in
            a package, which is made where `modules` does not contain it.
        requires: requirements to state.
    """

    name: str
    version: str = "1.0"
    plugins: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    requires: tuple[str, ...] = ()

    def write(self, folder: Path) -> Path:
        """Write `<name>-<version>.dist-info` and the modules into a folder, made if need be; returns the former."""
        files = [self._write_module(folder, module, source) for module, source in self.modules.items()]
        info = folder / f"{self.name.replace('-', '_')}-{self.version}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        metadata = ["Metadata-Version: 2.1", f"Name: {self.name}", f"Version: {self.version}"]
        metadata += [f"Requires-Dist: {requirement}" for requirement in self.requires]
        (info / "METADATA").write_text("\n".join(metadata) + "\n", encoding="utf-8")
        lines = [f"[{GROUP}]", *(f"{name} = {value}" for name, value in self.plugins.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        listed = [*files, *(info / name for name in ("METADATA", "entry_points.txt", "RECORD"))]
        record = "".join(f"{file.relative_to(folder).as_posix()},,\n" for file in listed)
        (info / "RECORD").write_text(record, encoding="utf-8")
        importlib.invalidate_caches()
        return info

    @contextlib.contextmanager
    def installed(self, folder: Path) -> Iterator[Path]:
        """Write it and have the folder on `sys.path`, see `importable`."""
        self.write(folder)
        with importable([folder]):
            yield folder

    def _write_module(self, folder: Path, module: str, source: str) -> Path:
        *packages, name = module.split(".")
        place = folder
        place.mkdir(parents=True, exist_ok=True)
        for package in packages:
            place = place / package
            place.mkdir(exist_ok=True)
            (place / "__init__.py").touch()
        if any(other.startswith(f"{module}.") for other in self.modules):
            (place / name).mkdir(exist_ok=True)
            file = place / name / "__init__.py"
        else:
            file = place / f"{name}.py"
        file.write_text(textwrap.dedent(source), encoding="utf-8")
        return file


@contextlib.contextmanager
def importable(folders: Iterable[Path]) -> Iterator[None]:
    """Put folders in front of `sys.path`; afterwards, take away what was imported from them and what it declared."""
    places = [str(folder) for folder in folders]
    sys.path[:0] = places
    importlib.invalidate_caches()
    before = set(sys.modules)
    declared = list(declarations())
    try:
        yield
    finally:
        for place in places:
            sys.path.remove(place)
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if any(Path(place) in Path(file).parents for place in places):
                del sys.modules[name]
        declarations()[:] = [d for d in declarations() if any(d is known for known in declared)]
        importlib.invalidate_caches()
