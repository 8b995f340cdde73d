# SPDX-License-Identifier: Apache-2.0
"""llama.cpp's block types under core's conformance suite."""

import pytest

from auto_round.testing.conformance import DataTypeConformance
from auto_round_gguf.schemes import plain_scheme
from auto_round_gguf.types import BLOCK_TYPES, prefixed

pytestmark = pytest.mark.slow


class Blocks(DataTypeConformance):
    scale_dtypes = (None,)
    shapes = ((16, 256), (3, 512), (1, 256))
    idempotent = False


def suite(kind):
    declared = {"name": prefixed(kind), "schemes": (plain_scheme(kind),)}
    if kind.name in ("q5_k", "q6_k"):
        # Weights of this size, over 63 or 127 steps of a scale and 31 of a code, have subnormal float16 super scales.
        declared["scale_equivariant"] = ()
    return type(f"Test_{kind.name}", (Blocks,), declared)


for _kind in BLOCK_TYPES.values():
    globals()[f"Test_{_kind.name}"] = suite(_kind)
