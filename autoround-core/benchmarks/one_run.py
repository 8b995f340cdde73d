# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: INP001 - a script, no package
"""Quantize one model in memory and say what it took and what it cost; any package called auto_round will do.

usage: one_run.py MODEL CALIBRATION_TEXT TEST_TEXT SCHEME [OPTION=VALUE ...]

Prints one line of JSON: seconds of `quantize()`, mean KL divergence from the original in nats over 30,000 tokens of the
test text in windows of 512, perplexity, and peak memory in MiB. Calibration: the text cut into 128 pieces of the same
length, the first 256 tokens of each, in batches of 8.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

SAMPLES, LENGTH, BATCH = 128, 256, 8
WINDOW, TOKENS = 512, 30_000


def value_of(text: str) -> Any:
    """What stands behind an option's `=`."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def calibration(tokenizer: Any, text: str) -> list[torch.Tensor]:
    """Token ids, int64 [256] each."""
    size = len(text) // SAMPLES
    pieces = (text[start : start + size] for start in range(0, size * SAMPLES, size))
    return [torch.tensor(tokenizer(piece)["input_ids"][:LENGTH]) for piece in pieces]


@torch.no_grad()
def quality(model: Any, reference: Any, ids: torch.Tensor) -> tuple[float, float]:
    """Mean KL divergence and perplexity."""
    divergence = surprise = 0.0
    for batch in ids.split(4):
        p, q = (m(input_ids=batch, use_cache=False).logits[:, :-1].float().log_softmax(-1) for m in (reference, model))
        divergence += F.kl_div(q, p, reduction="sum", log_target=True).item()
        surprise += F.nll_loss(q.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
    count = ids[:, 1:].numel()
    return divergence / count, math.exp(surprise / count)


def main() -> None:
    """One run."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from auto_round import AutoRound

    source, calibration_text, test_text, scheme, *given = sys.argv[1:]
    options = {name: value_of(value) for name, _, value in (argument.partition("=") for argument in given)}
    tokenizer = AutoTokenizer.from_pretrained(source)
    samples = calibration(tokenizer, Path(calibration_text).read_text(encoding="utf-8"))
    loader = torch.utils.data.DataLoader([{"input_ids": ids} for ids in samples], batch_size=1)  # type: ignore[arg-type]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).eval()
    rounder = AutoRound(
        model, tokenizer, scheme=scheme, dataset=loader, nsamples=SAMPLES, seqlen=LENGTH, batch_size=BATCH,
        device_map="cpu", **options,
    )  # fmt: skip
    start, cpu = time.perf_counter(), time.process_time()
    quantized = rounder.quantize()[0]
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ids = torch.tensor(tokenizer(Path(test_text).read_text(encoding="utf-8"))["input_ids"][:TOKENS])
    reference = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    divergence, perplexity = quality(quantized, reference, ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW))
    told = {
        "seconds": round(seconds, 1),
        "cpu": round(cpu, 1),
        "kl": round(divergence, 5),
        "ppl": round(perplexity, 3),
        "MiB": round(peak),
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
