# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: INP001 - a script, no package
"""How long quantizing a matrix takes, as a ratio to reading and writing it once.

usage: quantize_speed.py [--data-type mx_fp4] [--size 4096] [--threads N] [--device cpu]

All are timed in turns and the least of each is taken, so that other work on the machine disturbs the ratio little; with
one thread on a CPU it is the time that the process was running. There are two yardsticks, both one pass over the bytes:
into memory that exists already, and into memory that the system has to provide first, as every result needs.
"""

import argparse
import time
from collections.abc import Callable

import torch

import auto_round_mxfp
from auto_round.hookspecs import LazyPacking
from auto_round.schemes import QuantizationScheme

ROUNDS = 15


def least_seconds(jobs: dict[str, Callable[[], object]], device: str) -> dict[str, float]:
    """The least time of each job, over rounds in which all take their turn."""
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    least = dict.fromkeys(jobs, float("inf"))
    for _ in range(ROUNDS):
        for name, job in jobs.items():
            start = clock()
            job()
            if device != "cpu":
                torch.accelerator.synchronize()
            least[name] = min(least[name], clock() - start)
    return least


def main() -> None:
    """Time everything that is done to a matrix, and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-type", default="mx_fp4")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data_type = next(r for r in auto_round_mxfp.quant_tensor() if r.name == args.data_type).load()
    bits = max(data_type.elements)
    scheme = QuantizationScheme(bits=bits, group_size=32, data_type=args.data_type)
    shape = (args.size, args.size)
    packings = (record.load() for record in auto_round_mxfp.exporters() if isinstance(record, LazyPacking))
    packing = next(p for p in packings if p.refuses(args.data_type, scheme, shape) is None)
    weight = torch.randn(shape, device=args.device).bfloat16()
    target = torch.empty_like(weight)
    importance = torch.rand(args.size, device=args.device)
    codes = data_type.encode(weight, scheme)
    v = torch.zeros(weight.numel() // 32, 32, device=args.device, requires_grad=True)
    factor = torch.ones(weight.numel() // 32, device=args.device, requires_grad=True)

    def step() -> None:
        data_type.quant_tensor(weight, bits, v=v, max_scale=factor)[0].backward(target)

    jobs: dict[str, Callable[[], object]] = {
        "copy": lambda: target.copy_(weight),
        "copy into new memory": weight.clone,
        "quantize and dequantize": lambda: data_type.quant_tensor(weight, bits),
        "encode": lambda: data_type.encode(weight, scheme),
        "encode and pack": lambda: packing.pack(data_type.encode(weight, scheme)),
        "decode": lambda: data_type.decode(codes),
        "search": lambda: data_type.search(weight, scheme, imatrix=importance, scale_dtype=torch.float16),
        "one step of tuning": step,
    }
    least = least_seconds(jobs, args.device)
    copy, clone = least["copy"], least["copy into new memory"]
    print(f"{args.data_type}, {args.size} x {args.size} bfloat16, {args.threads} threads, {args.device}")
    for name, seconds in least.items():
        print(f"{name:<24} {1000 * seconds:8.2f} ms {seconds / copy:7.2f} x {seconds / clone:7.2f} x")


if __name__ == "__main__":
    main()
