# SPDX-License-Identifier: Apache-2.0
"""How fast weights become blocks, next to ggml's C code on one core and one matrix.

usage: speed.py [ROWS COLUMNS [TYPE ...]]

Prints, for each block type, nanoseconds a weight of ours and of ggml's `ggml_quantize_chunk`, without importance (for
the types without super-blocks: plain rounding on both sides) and with; and the importance-weighted squared error of
ours as a part of ggml's. Processor time, the best of three. Needs the package xllamacpp, whose extension exports ggml.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
import time
from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import torch

from auto_round_gguf import block
from auto_round_gguf.layouts import pack_blocks
from auto_round_gguf.schemes import plain_scheme
from auto_round_gguf.types import BLOCK_TYPES, BlockType


def ggml() -> Any:
    """The library that xllamacpp carries."""
    found = importlib.util.find_spec("xllamacpp.xllamacpp")
    if found is None or found.origin is None:
        raise SystemExit("xllamacpp is not installed.")
    library = ctypes.CDLL(found.origin)
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    pointers, sizes = [ctypes.c_void_p] * 2, [ctypes.c_int64] * 3
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, *pointers, *sizes, ctypes.c_void_p]
    return library


def best(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of processor time of the fastest of three runs, and what it returned."""
    seconds, result = float("inf"), None
    for _ in range(3):
        start = time.process_time()
        result = run()
        seconds = min(seconds, time.process_time() - start)
    return seconds, result


def ours(weight: torch.Tensor, kind: BlockType, importance: torch.Tensor | None, *, search: bool) -> torch.Tensor:
    """Bytes of a matrix, uint8 [rows, bytes of a row]."""
    data_type, scheme, found = getattr(block, kind.name.upper()), plain_scheme(kind), {}
    if search:
        found = data_type.search(weight, scheme, imatrix=importance, scale_dtype=torch.float16)
    return pack_blocks(data_type.encode(weight, scheme, **found).tensors, kind)


def theirs(library: Any, weight: torch.Tensor, kind: BlockType, importance: torch.Tensor | None) -> torch.Tensor:
    """The same by ggml."""
    rows, cols = weight.shape
    out = torch.empty(rows, cols // kind.block * kind.nbytes, dtype=torch.uint8)
    pointer = None if importance is None else importance.data_ptr()
    written = library.ggml_quantize_chunk(kind.ggml, weight.data_ptr(), out.data_ptr(), 0, rows, cols, pointer)
    assert written == out.numel()
    return out


def error(data: torch.Tensor, weight: torch.Tensor, kind: BlockType, importance: torch.Tensor | None) -> float:
    """Importance-weighted squared error of blocks."""
    decoded = torch.from_numpy(gguf.quants.dequantize(data.numpy(), gguf.GGMLQuantizationType(kind.ggml)))
    squares = (decoded - weight).double().square_()
    return float((squares if importance is None else squares * importance).sum())


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    rows, cols = (int(text) for text in (sys.argv[1:3] if len(sys.argv) > 2 else ("1024", "4096")))
    generator = np.random.default_rng(0)
    weight = torch.from_numpy((generator.standard_t(6.0, (rows, cols)) * 0.02).astype(np.float32))
    importance = torch.from_numpy((generator.random(cols) ** 4 + 1e-3).astype(np.float32))
    library = ggml()
    print("| type | ours | ggml | ratio | error | with importance: ours | ggml | ratio | error |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in sys.argv[3:] or BLOCK_TYPES:
        kind, cells = BLOCK_TYPES[name], [name.upper()]
        for imatrix in (None, importance):
            search = imatrix is not None or kind.super_bits is not None
            mine, data = best(lambda k=kind, i=imatrix, s=search: ours(weight, k, i, search=s))  # type: ignore[misc]
            other, reference = best(lambda k=kind, i=imatrix: theirs(library, weight, k, i))  # type: ignore[misc]
            part = error(data, weight, kind, imatrix) / error(reference, weight, kind, imatrix)
            each = 1e9 / weight.numel()
            cells += [f"{mine * each:.1f} ns", f"{other * each:.1f} ns", f"{other / mine:.2f}", f"{part:.3f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
