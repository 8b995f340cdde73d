# SPDX-License-Identifier: Apache-2.0
"""torch's defaults as a program finds them, for code that makes tensors while somebody else builds a model.

Models are built on the meta device, with their own dtype as the default one. A module of a plugin that is imported
meanwhile, because the model's checkpoint needs it, may well make a table of numbers as it is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ordinary_defaults"]


@contextmanager
def ordinary_defaults() -> Iterator[None]:
    """Tensors are made on the CPU, numbers in float32; does not import torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)
