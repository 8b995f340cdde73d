# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: INP001 - a script, no package
"""How long the known implementation packs a matrix, next to reading and writing it; run it in its environment.

usage: known_packing.py [SIZE]

Symmetric, 4 bits, groups of 128; its weights are on the grid already, as after tuning.
"""

from __future__ import annotations

import sys

import torch
from timing import turns
from torch import nn

BITS, GROUP = 4, 128


def layer_of(size: int) -> nn.Sequential:
    """A layer as it leaves its tuner, in a model."""
    scale = (torch.rand(size, size // GROUP) * 0.01 + 0.001).half().float()
    codes = torch.randint(-8, 8, (size, size // GROUP, GROUP)).float()
    linear = nn.Linear(size, size, bias=False, dtype=torch.bfloat16)
    linear.weight.data.copy_((codes * scale[..., None]).view(size, size))
    told = {"bits": BITS, "group_size": GROUP, "sym": True, "act_bits": 16, "data_type": "int", "scale": scale, "zp": 8}
    for name, value in told.items():
        setattr(linear, name, value)
    return nn.Sequential(linear)


def main() -> None:
    """Measure, and print."""
    from auto_round.export.export_to_autoround import export

    size = int(sys.argv[1]) if len(sys.argv) > 1 else 4096
    weight = torch.randn(size, size).bfloat16()
    target = torch.empty_like(weight)
    waiting = [layer_of(size) for _ in range(5)]

    def pack() -> None:
        export.pack_layer("0", waiting.pop(), "auto_round:auto_gptq", "cpu")

    with torch.no_grad():
        seconds = turns({"pack": pack, "copy": lambda: target.copy_(weight)}, 5)
    print(f"{seconds['pack'] / seconds['copy']:.1f} times a copy, {seconds['pack'] * 1e9 / size**2:.2f} ns a weight")


if __name__ == "__main__":
    main()
