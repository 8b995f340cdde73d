# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: INP001 - a script, no package
"""All benchmarks, one after the other, with the date and the machine; what `nox -s bench` runs.

usage: run.py [--known PYTHON] [--quick]

The known implementation, where a Python that has it is given, takes its turn in the same run. Every family says in its
benchmarks.toml what is measured of it. `--quick` leaves out whole runs and the large block.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

try:
    import tomllib
except ImportError:  # before Python 3.11
    import tomli as tomllib  # type: ignore[no-redef, import-not-found, unused-ignore]

HERE = Path(__file__).parent
LARGE = "4096x14336x32x8"


def machine() -> str:
    """One line that says where this was measured."""
    from importlib.metadata import version

    cpu = platform.processor() or platform.machine()
    told = Path("/proc/cpuinfo")
    if told.exists():
        names = [
            line.partition(":")[2].strip() for line in told.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    versions = ", ".join(f"{name} {version(name)}" for name in ("autoround-core", "torch", "transformers"))
    return f"{os.cpu_count()} cores ({cpu}), Python {platform.python_version()}, {versions}"


def cases(what: str) -> list[str]:
    """What all families want measured."""
    return [
        case
        for file in sorted(HERE.parents[1].glob("autoround-*/benchmarks.toml"))
        for case in tomllib.loads(file.read_text(encoding="utf-8")).get(what, [])
    ]


def show(python: str, script: str, *arguments: str) -> None:
    """One script, its command first."""
    print(f"\n$ python {shlex.join([script, *arguments])}", flush=True)
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "1"}
    if script == "rounding.py":  # of calls so short that threads would not find cores of their own
        environment["OMP_PROC_BIND"] = "true"
    subprocess.run([python, "-W", "ignore", str(HERE / script), *arguments], check=True, env=environment)  # noqa: S603


def main() -> None:
    """Everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--known")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    print(f"{dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}, {machine()}", flush=True)
    show(sys.executable, "startup.py")
    show(sys.executable, "rounding.py", *cases("rounding"))
    if args.known:
        show(args.known, "known_packing.py")
    show(sys.executable, "attention.py")
    show(sys.executable, "step.py", *cases("step"))
    if args.quick:
        return
    for case in {name.partition("@")[0]: name for name in reversed(cases("rounding"))}.values():
        show(sys.executable, "rounding.py", "--compile", case)  # each by itself: forms of a kernel are few in a process
    show(sys.executable, "step.py", "--shape", LARGE, "--steps", "4", *cases("step_large"))
    show(sys.executable, "step.py", "--shape", LARGE, "--steps", "8", "--compile", *cases("step_large"))
    known = ("--known", args.known) if args.known else ()
    show(sys.executable, "whole.py", *known, *cases("whole"))


if __name__ == "__main__":
    main()
