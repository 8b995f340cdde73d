# SPDX-License-Identifier: Apache-2.0
"""The tables of runtimes in the READMEs are what the installed families say today."""

import importlib.util
from pathlib import Path

import importlib_metadata
import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "docs" / "runtime_tables.py"
_spec = importlib.util.spec_from_file_location("runtime_tables", SCRIPT)
runtime_tables = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(runtime_tables)


@pytest.mark.parametrize("file", runtime_tables.readmes(), ids=lambda file: file.parent.name)
def test_a_table_is_what_the_family_says(file):
    try:
        importlib_metadata.distribution(file.parent.name)
    except importlib_metadata.PackageNotFoundError:
        pytest.skip(f"{file.parent.name} is not installed")
    told = "run python autoround-core/docs/runtime_tables.py"
    assert runtime_tables.with_table(file) == file.read_text(encoding="utf-8"), told
