# SPDX-License-Identifier: Apache-2.0
"""Writes the package: the template's files, filled in, all of them or none. Imports no torch."""

from __future__ import annotations

import string
import tempfile
from dataclasses import asdict
from importlib import resources
from pathlib import Path

from auto_round.errors import OutputError
from auto_round.scaffold.names import PackageNames

__all__ = ["package_files", "write_package"]

FILES = {
    "README.md": "README.md.tmpl",
    "pyproject.toml": "pyproject.toml.tmpl",
    "src/$package/__init__.py": "hooks.py.tmpl",
    "src/$package/$data_type.py": "data_type.py.tmpl",
    "src/$package/py.typed": "",
    "tests/test_conformance.py": "test_conformance.py.tmpl",
    "tests/test_values.py": "test_values.py.tmpl",
}
"""Path in the package, and the template it is made of, "" for an empty file."""


def package_files(names: PackageNames) -> dict[str, str]:
    """The text of every file, by its path in the package."""
    templates = resources.files("auto_round").joinpath("scaffold/template")
    values = asdict(names)
    filled = {}
    for path, template in FILES.items():
        text = templates.joinpath(template).read_text(encoding="utf-8") if template else ""
        filled[string.Template(path).substitute(values)] = string.Template(text).substitute(values)
    return filled


def write_package(names: PackageNames, folder: Path) -> None:
    """Write it into a folder that is absent or empty; nothing is there before everything is.

    Raises:
        OutputError: the folder holds something, or cannot be written.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder} exists and is not an empty folder; name another with --output.")
        files = package_files(names)
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside it, so that the last step is a rename; below a folder of our own, so that it gets usual permissions.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            written = Path(temporary, folder.name)
            for path, text in files.items():
                file = written / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8", newline="\n")
            if folder.exists():
                folder.rmdir()
            written.rename(folder)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}.") from error
