# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: INP001 - a script, no package
"""How long attention takes as blocks compute it on CPUs, as a ratio to torch's own kernel.

usage: attention.py [SAMPLESxHEADSxREADERSxLENGTHxFEATURES ...]

Causal, as both are asked for by `scaled_dot_product_attention`; the least of some rounds in which all take their turn.
"""

from __future__ import annotations

import argparse
import functools
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from timing import turns

from auto_round.calibration.attention import attention_by_rows
from auto_round.run.allocator import freed_memory_kept

CASES = ["8x8x4x256x32", "4x8x4x512x32", "8x32x8x256x128", "8x32x8x512x128", "1x32x8x2048x128"]
ROUNDS = 4


def attend(tensors: tuple[torch.Tensor, ...], gradient: torch.Tensor, *, ours: bool, back: bool) -> None:
    """Once, by rows or by torch, forward alone or with the backward pass."""
    way = attention_by_rows(torch.device("cpu")) if ours else nullcontext()
    with way, torch.set_grad_enabled(back):
        output = F.scaled_dot_product_attention(*tensors, is_causal=True, enable_gqa=True)
    if back:
        torch.autograd.grad(output, tensors, gradient)


def measure(case: str, dtype: torch.dtype) -> str:
    """A line for people."""
    samples, heads, readers, length, features = map(int, case.split("x"))
    # Heads after tokens in memory, as models have them.
    query, key, value = (
        torch.randn(samples, length, n, features, dtype=dtype).transpose(1, 2).requires_grad_()
        for n in (heads, readers, readers)
    )
    gradient = torch.randn_like(query)
    passes = {"forward": False, "with backward": True}
    jobs = {
        f"{name}, {who}": functools.partial(attend, (query, key, value), gradient, ours=who == "ours", back=back)
        for name, back in passes.items()
        for who in ("torch", "ours")
    }
    found = turns(jobs, ROUNDS)
    line = f"  {case:16} {str(dtype).removeprefix('torch.'):9}"
    for name in passes:
        torchs, ours = found[f"{name}, torch"], found[f"{name}, ours"]
        line += f"  {name}: torch {1000 * torchs:7.1f} ms, ours {1000 * ours:7.1f} ms, x {ours / torchs:4.2f}"
    return line


def main() -> None:
    """Measure, and print a line per shape and dtype."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", default=CASES)
    args = parser.parse_args()
    print(f"attention, samples x heads x heads of keys x length x features, {torch.get_num_threads()} threads")
    with freed_memory_kept():
        for dtype in (torch.bfloat16, torch.float32):
            for case in args.cases:
                print(measure(case, dtype), flush=True)


if __name__ == "__main__":
    main()
