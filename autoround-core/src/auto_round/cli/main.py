# SPDX-License-Identifier: Apache-2.0
"""The command `auto-round`. This module imports click and nothing that takes time."""

from __future__ import annotations

import os

import click

from auto_round import __version__
from auto_round.cli.group import TRACEBACK, CommandEntry, LazyGroup

__all__ = ["main"]

COMMANDS = {
    "quantize": CommandEntry("auto_round.cli.quantize:quantize", "Quantize a model; what is meant without a command."),
    "plan": CommandEntry("auto_round.cli.plan:plan", "Show what would be done to a model, without doing it."),
    "schemes": CommandEntry("auto_round.cli.listings:schemes", "List the named schemes."),
    "dtypes": CommandEntry("auto_round.cli.listings:dtypes", "List the data types."),
    "formats": CommandEntry("auto_round.cli.listings:formats", "List the output formats."),
    "runtimes": CommandEntry(
        "auto_round.cli.runtimes:runtimes", "List what loads which schemes, from which version on."
    ),
    "new-dtype": CommandEntry("auto_round.cli.new_dtype:new_dtype", "Write a package with a data type of your own."),
    "plugins": CommandEntry("auto_round.cli.listings:plugins", "List the plugins: what works, what does not, and why."),
    "doctor": CommandEntry("auto_round.cli.doctor:doctor", "Check the installation; say how to mend what is broken."),
}


def _dashes(name: str) -> str:
    """`--output_dir` is `--output-dir`."""
    return name.replace("_", "-")


@click.group(
    cls=LazyGroup,
    entries=COMMANDS,
    default="quantize",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _dashes},
    epilog="auto-round MODEL --scheme NAME is short for auto-round quantize MODEL --scheme NAME.",
)
@click.option("--traceback", is_flag=True, envvar=TRACEBACK, help="Show where an error was raised.")
@click.version_option(__version__, package_name="autoround-core", prog_name="auto-round")
def main(*, traceback: bool) -> None:
    """Quantize language models after training; data types are plugins."""
    if os.environ.get("AUTO_ROUND_TRACE", "0") not in ("", "0"):
        import logging

        trace = logging.getLogger("auto_round.plugins.tracing")
        trace.setLevel(logging.INFO)
        if not trace.handlers:
            trace.addHandler(logging.StreamHandler())
