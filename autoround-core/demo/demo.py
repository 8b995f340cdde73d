# SPDX-License-Identifier: Apache-2.0
"""Quantize a small language model to 4 bits with the command line, load it from disk, and show what it cost.

usage: demo.py [OUTPUT_DIR]

Twice: by plain rounding, and tuned. OUTPUT_DIR, by default out/demo, receives both checkpoints.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL = HERE / "models" / "pep-llama-7m"
CALIBRATION = HERE / "text" / "peps-calib.txt"
TEST = HERE / "text" / "peps-test.txt"
PROMPT = "This PEP proposes"
SCHEME = ("--scheme", "W4A16", "--format", "auto_round")
SAMPLES = ("--nsamples", "128", "--seqlen", "256", "--batch_size", "8")
PROGRAM = Path(sysconfig.get_path("scripts")) / ("auto-round.exe" if os.name == "nt" else "auto-round")


@dataclass(frozen=True)
class Run:
    """One run of the command line and what it took."""

    name: str
    directory: Path
    seconds: float
    peak_bytes: int | None


def shown(path: Path) -> str:
    """A path as short as it can be written."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def quantize(name: str, directory: Path, *options: str) -> Run:
    """Run `auto-round quantize` in a process of its own and measure it.

    This process must still be small: on Linux a child's peak starts at what its parent held when it was started.
    """
    if directory.exists():
        shutil.rmtree(directory)  # ours, from an earlier demo
    arguments = ["quantize", shown(MODEL), *SCHEME, "--dataset", shown(CALIBRATION), *SAMPLES, *options]
    arguments += ["--output", shown(directory)]
    print(f"\n$ auto-round {shlex.join(arguments)}", flush=True)
    started = time.monotonic()
    command = [str(PROGRAM), *arguments]
    if hasattr(os, "wait4"):
        pid = os.posix_spawn(command[0], command, os.environ)
        _, status, usage = os.wait4(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    else:
        code, peak = subprocess.run(command, check=False).returncode, None
    if code:
        sys.exit(f"auto-round ended with exit code {code}")
    return Run(name, directory, time.monotonic() - started, peak)


def report(runs: list[Run]) -> None:
    """Load every checkpoint from disk, measure it against the original, and print a table."""
    import measure  # torch, from here on
    import transformers
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    transformers.utils.logging.disable_progress_bar()
    console = Console()
    table = Table("", "original", *(run.name for run in runs), title=f"{MODEL.name}, {SCHEME[1]}, loaded from disk")
    for column in table.columns[1:]:
        column.justify = "right"
    with console.status("measuring") as status:
        judge = measure.Measure(MODEL, TEST)
        texts = [measure.continuation(judge.original, MODEL, PROMPT)]
        qualities = [judge(judge.original)]
        for run in runs:
            status.update(f"measuring: {run.name}")
            model = measure.load(run.directory)
            texts.append(measure.continuation(model, run.directory, PROMPT))
            qualities.append(judge(model))
    table.add_row("perplexity", *(f"{quality.perplexity:.3f}" for quality in qualities))
    table.add_row("KL divergence from the original", *(f"{quality.divergence:.5f}" for quality in qualities))
    layers = [measure.bytes_of_layers(MODEL, run.directory) for run in runs]
    megabytes = [f"{size / 1e6:.2f}" for size in (layers[0][0], *(after for _, after in layers))]
    table.add_row("quantized layers, MB", *megabytes)
    files = [measure.bytes_on_disk(directory) for directory in (MODEL, *(run.directory for run in runs))]
    table.add_row("safetensors files, MB", *(f"{size / 1e6:.2f}" for size in files))
    table.add_row("time of the whole command, s", "", *(f"{run.seconds:.1f}" for run in runs))
    peaks = ("unknown" if run.peak_bytes is None else f"{run.peak_bytes / 1e6:.0f}" for run in runs)
    table.add_row("peak memory of that process, MB", "", *peaks)

    for name, text in zip(["original", *(run.name for run in runs)], texts, strict=True):
        console.print(Text.assemble("\n", (f"{name}: ", "bold"), " ".join(text.split())))
    console.print()
    console.print(table)
    console.print(
        f"Perplexity and divergence over {judge.windows.numel():,} tokens of {shown(TEST)}, which neither training nor "
        "calibration has seen.",
        style="dim",
    )


def main() -> None:
    """Quantize twice, then report."""
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "out/demo").resolve()
    runs = [
        quantize("plain rounding", output / f"{MODEL.name}-W4A16-rounded", "--iters", "0", "--disable_opt_rtn"),
        quantize("tuned", output / f"{MODEL.name}-W4A16", "--iters", "200"),
    ]
    report(runs)
    print(
        f"\nThe tuned model is in {shown(runs[-1].directory)}. The same for a model of yours, a directory or a hub id,"
    )
    print("calibrated on text of yours, a file or the id of a dataset:")
    print(f"\n  {shown(PROGRAM)} quantize MODEL {shlex.join(SCHEME)} --dataset TEXT --output DIR\n")


if __name__ == "__main__":
    main()
