# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: INP001 - a script, no package
"""How long a matrix takes on its way to a file and back, as a ratio to reading and writing it once.

usage: rounding.py [--size 4096] [--rounds 5] [--compile] SCHEME[@FORMAT] ...

round: quantize and dequantize, as a step of tuning does. search: the better scale, under importance. encode: to codes,
which is all that rounding without steps does to a weight (`--iters 0 --disable-opt-rtn`). pack, unpack: codes to what
a file holds and back. decode: codes to weights, of which a report tells the error. The floor copies the bfloat16 matrix
into memory that is there already; results need memory of their own, for which the second figure stands. With --compile,
kernels are compiled, as they are with enable_torch_compile. Threads that are not bound to cores (OMP_PROC_BIND=true)
and have slept share one for some milliseconds, which is as long as a compiled kernel takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from timing import turns

from auto_round.data_type.kernels import kernels_compiled
from auto_round.plugins import default_registry
from auto_round.run.allocator import freed_memory_kept
from auto_round.schemes import QuantizationScheme

PARTS = ("round", "search", "encode", "pack", "unpack", "decode")


def jobs_of(scheme: QuantizationScheme, output_format: str, weight: torch.Tensor) -> dict[str, Callable[[], object]]:
    """What is done to a weight."""
    registry = default_registry()
    data_type = registry.data_type_for(scheme)
    shape = (weight.shape[0], weight.shape[1])
    packing = next(p for p in registry.packings(output_format) if p.refuses(data_type.name, scheme, shape) is None)
    importance = torch.rand(weight.shape[1])
    shared = data_type.share([weight], scheme)
    dtype = packing.scale_dtype(weight.dtype) or torch.float16
    known = {"bits": scheme.bits, "group_size": scheme.group_size, "scale_dtype": dtype, **shared}
    named = {name: value for name, value in known.items() if name in data_type.offers}
    offers = {name: value for name, value in named.items() if name not in ("bits", "group_size")}
    codes = data_type.encode(weight, scheme, **offers)
    stored = packing.pack(codes)
    jobs: dict[str, Callable[[], object]] = {
        "round": lambda: data_type.quant_tensor(weight, **named),
        "encode": lambda: data_type.encode(weight, scheme, **offers),
        "pack": lambda: packing.pack(codes),
        "unpack": lambda: packing.unpack(stored, data_type.name, scheme, shape, weight.dtype),
        "decode": lambda: data_type.decode(codes),
    }
    if data_type.searches:
        jobs["search"] = lambda: data_type.search(weight, scheme, imatrix=importance, scale_dtype=dtype, **shared)
    return jobs


def main() -> None:
    """Measure, and print a line per scheme."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("schemes", nargs="+")
    args = parser.parse_args()
    with freed_memory_kept():
        pass  # leaves the allocator as it comes to be in any process that has freed large tensors for a while
    weight = torch.randn(args.size, args.size).bfloat16()
    target = torch.empty_like(weight)
    floors = {"copy": lambda: target.copy_(weight), "clone": weight.clone}
    floor = turns(floors, 4 * args.rounds)
    each = 1e9 / weight.numel()
    print(
        f"{args.size} x {args.size} bfloat16, {torch.get_num_threads()} threads; a copy into memory in use takes "
        f"{floor['copy'] * each:.3f} ns a weight, into new memory {floor['clone'] * each:.3f}; ratios to both"
    )
    print("  " + "scheme".ljust(28) + "".join(part.rjust(14) for part in PARTS))
    for name in args.schemes:
        scheme_name, _, output_format = name.partition("@")
        scheme = default_registry().scheme(scheme_name)
        with kernels_compiled(wanted=args.compile):
            jobs = jobs_of(scheme, output_format or "auto_round", weight)
            if args.compile:
                jobs.pop("search", None)
            seconds = turns(jobs, args.rounds)
        told = [
            f"{seconds[p] / floor['copy']:.1f} {seconds[p] / floor['clone']:.1f}" if p in seconds else "-"
            for p in PARTS
        ]
        print("  " + name.ljust(28) + "".join(t.rjust(14) for t in told), flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        main()
