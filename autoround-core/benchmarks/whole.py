# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: INP001 - a script, no package
"""Whole runs of ours, next to the known implementation where a Python that has it is given; in turns.

usage: whole.py [--known PYTHON] [--model DIR] [--texts DIR] [--rounds 1] [SCHEME[,OPTION=VALUE...] ...]

Every line is one run of one_run.py in a process of its own. What stands before the first line without options is the
published recipe of 200 steps of both; further lines are ours alone, and each is compared with the known one's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DEMO = HERE.parent / "demo"


def run(python: str, model: str, texts: Path, case: str) -> dict[str, Any]:
    """One run; its line."""
    scheme, *options = case.split(",")
    command = [python, "-W", "ignore", str(HERE / "one_run.py"), model]
    command += [str(texts / "peps-calib.txt"), str(texts / "peps-test.txt"), scheme, *options]
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)  # noqa: S603
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def told(result: dict[str, Any], other: dict[str, Any] | None) -> str:
    """A line for people."""
    line = f"{result['seconds']:7.1f} s  {result['cpu']:7.1f} s of one core  KL {result['kl']:.5f}"
    line += f"  ppl {result['ppl']:.3f}  {result['MiB']} MiB"
    if other is None:
        return line
    return line + f"  time x {result['seconds'] / other['seconds']:.2f}, KL x {result['kl'] / other['kl']:.2f}"


def main() -> None:
    """Run everything, and print a line each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--known")
    parser.add_argument("--model", default=str(DEMO / "models/pep-llama-7m"))
    parser.add_argument("--texts", type=Path, default=DEMO / "text")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("cases", nargs="+")
    args = parser.parse_args()
    print(f"{Path(args.model).name}, 128 samples of 256 tokens, batch 8")
    for _ in range(args.rounds):
        known = None
        if args.known:
            scheme = args.cases[0].split(",")[0]
            known = run(args.known, args.model, args.texts, scheme)
            print(f"  {'known, ' + scheme:40} {told(known, None)}", flush=True)
        for case in args.cases:
            result = run(sys.executable, args.model, args.texts, f"{case},verbose=false")
            print(f"  {case:40} {told(result, known)}", flush=True)


if __name__ == "__main__":
    main()
