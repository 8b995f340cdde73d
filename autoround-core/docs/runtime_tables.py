# SPDX-License-Identifier: Apache-2.0
"""Write the table of runtimes into the README of every family that has a place for one, from what its data types say.

Run it after a change of a family's runtimes, with the families installed:
`python autoround-core/docs/runtime_tables.py`. A test fails until it was run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMAND = "from auto_round.cli.main import main; main(prog_name='auto-round')"
ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- runtimes: written by autoround-core/docs/runtime_tables.py -->\n", "<!-- /runtimes -->\n"


def readmes() -> list[Path]:
    """The documents with a place for a table."""
    found = sorted(ROOT.glob("autoround-*/README.md"))
    return [file for file in found if BEGIN in file.read_text(encoding="utf-8")]


def with_table(file: Path) -> str:
    """A document with the table as it should be."""
    before, _, rest = file.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    arguments = ("runtimes", "--distribution", file.parent.name, "--markdown")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AUTO_ROUND")}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return f"{before}{BEGIN}{done.stdout}{END}{after}"


if __name__ == "__main__":
    for file in readmes():
        file.write_text(with_table(file), encoding="utf-8")
