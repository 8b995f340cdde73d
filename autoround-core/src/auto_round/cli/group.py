# SPDX-License-Identifier: Apache-2.0
"""The command group: commands are imported when they are called, and `quantize` is meant when none is named."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from auto_round.errors import AutoRoundError
from auto_round.option_hints import instead_of

__all__ = ["TRACEBACK", "CommandEntry", "LazyGroup"]

TRACEBACK = "AUTO_ROUND_TRACEBACK"


@dataclass(frozen=True)
class CommandEntry:
    """Where a command is and what `--help` says of it, so that `--help` imports none."""

    target: str
    summary: str


class LazyGroup(click.Group):
    """A click group over a table of commands that are not imported yet."""

    def __init__(self, *args: Any, entries: Mapping[str, CommandEntry], default: str = "", **kwargs: Any) -> None:
        """Make the group.

        Args:
            args, kwargs: as for `click.Group`.
            entries: commands by name.
            default: the command that is meant when the first argument names none, "" where that is an error.
        """
        super().__init__(*args, **kwargs)
        self._entries = dict(entries)
        self._default = default

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order of the table."""
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of the name."""
        entry = self._entries.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in self._entries.items()])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Find out which command is meant."""
        if not self._default:
            return super().parse_args(ctx, args)
        own = args[: args.index("--")] if "--" in args else args
        if "--traceback" in own:  # wherever it stands, it is the group's
            args = ["--traceback", *(a for n, a in enumerate(args) if n >= len(own) or a != "--traceback")]
        first = 1 if args[:1] == ["--traceback"] else 0
        if len(args) > first and args[first] not in {*self._entries, "--help", "-h", "--version"}:
            self._check_misspelt(ctx, args[first])
            args = [*args[:first], self._default, *args[first:]]
        return super().parse_args(ctx, args)

    def _check_misspelt(self, ctx: click.Context, word: str) -> None:
        if word.startswith("-") or set(word) & set("/\\.") or Path(word).exists():
            return
        close = difflib.get_close_matches(word, self._entries, n=1, cutoff=0.75)
        if close:
            ctx.fail(f"there is no command {word!r}; did you mean {close[0]}? A model of that name goes after --model.")

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; say in one line what stopped it."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except click.NoSuchOption as error:
            option = error.option_name.lstrip("-").replace("-", "_")
            told = instead_of(option)
            if told:
                raise click.NoSuchOption(
                    error.option_name, f"{error.message.rstrip('.')}: {told}.", ctx=error.ctx
                ) from error
            raise
        except AutoRoundError as error:
            if ctx.params.get("traceback"):
                raise
            click.echo(f"error: {error}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)
        except BrokenPipeError:
            # The reader has seen enough; what is still buffered goes nowhere, so that closing stdout cannot fail.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        return result
