# SPDX-License-Identifier: Apache-2.0
"""`auto-round doctor`."""

from __future__ import annotations

import dataclasses
import json

import click

from auto_round.cli.tables import write_table

__all__ = ["doctor"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Write JSON; its keys do not change.")
@click.pass_context
def doctor(context: click.Context, *, as_json: bool) -> None:
    """Look at every plugin and what it needs; say what mends what is broken. Exits with 1 if something is.

    JSON: {"findings": [{subject, verdict, told, remedy}]}; verdicts are ok, hint and problem.
    """
    from auto_round.plugins import default_registry
    from auto_round.plugins.diagnosis import diagnose

    findings = list(diagnose(default_registry()))
    if as_json:
        click.echo(json.dumps({"findings": [dataclasses.asdict(finding) for finding in findings]}, indent=2))
    else:
        rows = [(f.verdict, f.subject, f.told, f.remedy) for f in findings]
        write_table(("verdict", "what", "found", "what to do"), rows)
    if any(finding.verdict == "problem" for finding in findings):
        context.exit(1)
