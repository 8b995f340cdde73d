# SPDX-License-Identifier: Apache-2.0
"""Whether a layer that is kept like a linear one also computes like one.

Routers of some mixtures of experts inherit from `nn.Linear` and answer with the experts they choose; others inherit to
write down the same product in another way. What a class computes is seen on a few numbers.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

__all__ = ["computes_as_linear"]

FEW = 16
"""Rows and columns that are looked at: enough for a router to choose from."""


def computes_as_linear(module: Any) -> bool:
    """Whether an `nn.Linear` or `Conv1D`, or what inherits from them, answers with a product and a bias.

    Its weights are not looked at, and may be on the meta device.
    """
    if type(module).forward in (nn.Linear.forward, Conv1D.forward):
        return True
    transposed = isinstance(module, Conv1D)
    rows, cols = (min(size, FEW) for size in (module.weight.T if transposed else module.weight).shape)
    weight = torch.linspace(-1.0, 1.0, rows * cols, dtype=torch.float32, device="cpu").reshape(rows, cols)
    bias = None if module.bias is None else torch.linspace(1.0, 2.0, rows, dtype=torch.float32, device="cpu")
    x = torch.linspace(-2.0, 1.0, 3 * cols, dtype=torch.float32, device="cpu").reshape(1, 3, cols)
    probe: Any = copy.copy(module)
    # Its own parameters instead of the model's; a copy of a module shares what it refers to.
    probe.__dict__["_parameters"] = {"weight": nn.Parameter(weight.T if transposed else weight), "bias": None}
    if bias is not None:
        probe.__dict__["_parameters"]["bias"] = nn.Parameter(bias)
    try:
        with torch.no_grad():
            answer = type(module).forward(probe, x)
    except Exception:  # noqa: BLE001 - whatever it is, it is not what a linear layer does
        return False
    wanted = F.linear(x, weight, bias)
    same = isinstance(answer, torch.Tensor) and answer.shape == wanted.shape
    return same and torch.allclose(answer.float(), wanted, rtol=1e-4, atol=1e-4)
