# SPDX-License-Identifier: Apache-2.0
"""torch's defaults, which a model that is being built changes for all threads, and as a program finds them.

Models are built on the meta device, with their own dtype as the default one. A module of a plugin that is imported
meanwhile, because the model's checkpoint needs it, may well make a table of numbers as it is imported.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["BUILDING", "ordinary_defaults"]

BUILDING = threading.RLock()
"""Held while modules are built: transformers changes torch's default dtype for it, and accelerate how modules register
parameters, both for all threads; two at once would leave the process that way."""


@contextmanager
def ordinary_defaults() -> Iterator[None]:
    """Tensors are made on the CPU, numbers in float32, and no thread builds a model; does not import torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    with BUILDING:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            with torch.device("cpu"):
                yield
        finally:
            torch.set_default_dtype(before)
