# SPDX-License-Identifier: Apache-2.0
"""Kernels of llama.cpp's block types, compiled: with and without a minimum, in super-blocks and not."""

import pytest

from auto_round.testing.conformance import CompiledTests
from auto_round_gguf.schemes import plain_scheme
from auto_round_gguf.types import BLOCK_TYPES, prefixed

pytestmark = pytest.mark.slow


class TestMinima(CompiledTests):
    name = prefixed(BLOCK_TYPES["q4_k"])
    schemes = (plain_scheme(BLOCK_TYPES["q4_k"]),)


class TestSigned(CompiledTests):
    name = prefixed(BLOCK_TYPES["q8_0"])
    schemes = (plain_scheme(BLOCK_TYPES["q8_0"]),)
