# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: INP001 - a script, no package
"""How long the command takes to answer, next to an interpreter that does nothing.

usage: startup.py
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

ASKED = {
    "nothing": ["-c", "pass"],
    "import auto_round": ["-c", "import auto_round"],
    "--help": ["-m", "auto_round", "--help"],
    "schemes": ["-m", "auto_round", "schemes"],
    "dtypes": ["-m", "auto_round", "dtypes"],
    "import torch": ["-c", "import torch"],
}
ROUNDS = 5


def seconds(arguments: list[str]) -> float:
    """Of one fresh process."""
    start = time.perf_counter()
    # Bytecode is kept, as on any installation that has run once.
    subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
    )
    return time.perf_counter() - start


def main() -> None:
    """Measure in turns, and print a line each."""
    for arguments in ASKED.values():
        seconds(arguments)
    times: dict[str, list[float]] = {name: [] for name in ASKED}
    for _ in range(ROUNDS):
        for name, arguments in ASKED.items():
            times[name].append(seconds(arguments))
    print(f"start-up, the middle of {ROUNDS} fresh processes each")
    for name, taken in times.items():
        print(f"  {name:18} {statistics.median(taken):6.2f} s")


if __name__ == "__main__":
    main()
