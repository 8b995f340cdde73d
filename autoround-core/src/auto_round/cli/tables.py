# SPDX-License-Identifier: Apache-2.0
"""Tables: ruled on a terminal, aligned plain text that is never cut where the output goes elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

__all__ = ["write_table"]


def write_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write rows of text under their column titles; columns that are empty in every row are left out."""
    kept = [n for n in range(len(columns)) if any(row[n] for row in rows)] if rows else range(len(columns))
    columns = [columns[n] for n in kept]
    rows = [[row[n] for n in kept] for row in rows]
    if sys.stdout.isatty():
        _write_ruled(columns, rows)
        return
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _write_ruled(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
