# SPDX-License-Identifier: Apache-2.0
"""`auto-round new-dtype`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

__all__ = ["new_dtype"]


@click.command(short_help="Write a package with a data type of your own.")
@click.argument("name")
@click.option("--output", type=click.Path(path_type=Path), help="Folder to write.  [default: autoround-NAME]")
def new_dtype(*, name: str, output: Path | None) -> None:
    """Write a package with a data type of your own: complete, installable, and working before you change it.

    \b
    auto-round new-dtype my-type4
    """  # noqa: D301 - click wants the character, before lines to keep as they are
    from auto_round.plugins import default_registry
    from auto_round.scaffold.names import PackageNames, check_free
    from auto_round.scaffold.package import write_package

    names = PackageNames.of(name)
    check_free(names, default_registry())
    folder = output if output is not None else Path(names.distribution)
    write_package(names, folder)
    # Never taken for a requirement of that name.
    where = str(folder) if folder.is_absolute() else f"./{folder}"
    click.echo(
        f"written: {folder}, data type {names.data_type}, scheme {names.scheme}. Next, install, test, quantize:\n"
    )
    click.echo(f"  pip install -e {shlex.quote(where)} 'autoround-core[testing]'")
    click.echo(f"  pytest {shlex.quote(where)}")
    click.echo(f"  auto-round quantize MODEL --scheme {names.scheme} --format auto_round --dataset TEXT --output DIR")
