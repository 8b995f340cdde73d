# SPDX-License-Identifier: Apache-2.0
"""`auto-round quantize`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from auto_round.cli.model_options import (
    activations,
    e2e_iters,
    low_memory,
    model_and_scheme,
    read_model,
    read_scheme,
    recipe,
)
from auto_round.sizes import readable_size

__all__ = ["quantize"]


@click.command(short_help="Quantize a model and write a checkpoint.")
@model_and_scheme
@click.option("--output", "--output-dir", "output", required=True, help="Directory to write; absent or empty.")
@click.option("--dataset", help="Calibration data: a text, JSON, JSONL or parquet file, or a hub data set id.")
@click.option("--nsamples", type=int, default=128, show_default=True, help="Calibration samples.")
@click.option("--seqlen", type=int, help="Tokens per sample.  [default: 2048, or what the model can take]")
@click.option("--pack", is_flag=True, help="Join short texts to full samples.")
@recipe
@click.option("--iters", type=int, default=200, show_default=True, help="Steps per block; 0 only rounds.")
@e2e_iters
@click.option("--batch-size", type=int, default=8, show_default=True, help="Samples per forward pass.")
@click.option("--gradient-accumulate-steps", type=int, default=1, show_default=True, help="Passes per step.")
@click.option("--lr", type=float, help="Step size.  [default: 1/iters]")
@click.option("--minmax-lr", type=float, help="Step size of the scales.  [default: the same]")
@click.option("--disable-minmax-tuning", is_flag=True, help="Learn the rounding only, not the scales.")
@click.option("--disable-quanted-input", is_flag=True, help="Feed every block the original model's activations.")
@click.option("--disable-opt-rtn", is_flag=True, help="Do not search for better scales first.")
@click.option("--static-kv-dtype", help="Keep keys and values in this data type, e.g. 8-bit floats, scales fixed here.")
@click.option("--seed", type=int, default=42, show_default=True, help="Order of the samples.")
@click.option("--device-map", help="Where to compute: cpu, cuda, cuda:1.  [default: a GPU if there is one]")
@click.option(
    "--compute-dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="What blocks are computed in.  [default: the model's own dtype]",
)
@click.option("--enable-torch-compile", is_flag=True, help="Compile what is done to weights; pays for large layers.")
@click.option("--restart", is_flag=True, help="Forget what an earlier run left, instead of going on from there.")
@click.option("--no-resume", is_flag=True, help="Keep no journal; a run that is cut off is lost.")
@activations
@low_memory
@click.option("--workers", type=int, help="Layers rounded at once where no data flows.  [default: threads]")
@click.option("--quiet", is_flag=True, help="No progress.")
def quantize(**options: Any) -> None:
    """Quantize MODEL and write a checkpoint that loads elsewhere.

    \b
    auto-round quantize ./Llama-3.1-8B --scheme W4A16 --output ./Llama-3.1-8B-W4A16
    """  # noqa: D301 - click wants the character, before lines to keep as they are
    from auto_round.run.allocator import ask_for_large_pages

    ask_for_large_pages()

    import torch
    from transformers.utils import logging

    from auto_round.autoround import AutoRound
    from auto_round.run.report import told_hurt

    logging.disable_progress_bar()  # one bar is enough, and it is ours
    model = read_model(options)
    scheme = read_scheme(options)
    output, output_format = options.pop("output"), options.pop("format_")
    quiet = options.pop("quiet")
    compute_dtype = options.pop("compute_dtype")
    tuning: dict[str, Any] = {
        "low_cpu_mem_usage": True,  # nobody is handed the model
        "resume": not options.pop("no_resume"),
        "enable_minmax_tuning": not options.pop("disable_minmax_tuning"),
        "enable_quanted_input": not options.pop("disable_quanted_input"),
        "compute_dtype": getattr(torch, compute_dtype) if compute_dtype else None,
    }
    job = AutoRound(model, verbose=not quiet, **scheme, **tuning, **options)
    _, folders = job.quantize_and_save(output, output_format)
    if os.environ.get("RANK", "0") != "0":
        return  # of several processes the first one speaks
    assert job.report is not None
    plan = job.plan(output_format)
    peak = job.report.peak_memory
    click.echo(
        f"{plan.scheme_name}: {len(plan.quantized)} of {len(plan.layers)} linear layers, "
        f"{plan.bits_per_weight:.2f} bits per quantized weight, "
        f"{readable_size(plan.model_bytes)} -> {readable_size(plan.output_bytes)}, "
        f"{job.report.seconds:.1f} s" + (f", peak memory {readable_size(peak)}" if peak else "")
    )
    hurt = told_hurt(job.report.blocks)
    if hurt is not None:
        click.echo(hurt)
    for folder in folders:
        click.echo(f"written: {Path(folder)}")
