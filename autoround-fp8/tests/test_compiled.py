# SPDX-License-Identifier: Apache-2.0
"""Kernels of the 8-bit floats, compiled."""

import pytest

from auto_round import QuantizationScheme
from auto_round.testing.conformance import CompiledTests

pytestmark = pytest.mark.slow


class TestGroups(CompiledTests):
    name = "fp8_e4m3"
    schemes = (QuantizationScheme(8, -1, True, "fp8_e4m3"), QuantizationScheme(8, 0, True, "fp8_e4m3"))


class TestBlocks(CompiledTests):
    name = "block_fp8"
    schemes = (QuantizationScheme(8, (8, 64), True, "block_fp8"),)


class TestManyBinades(CompiledTests):
    name = "fp8_e5m2"
    schemes = (QuantizationScheme(8, -1, True, "fp8_e5m2"),)


class TestTwoStages(CompiledTests):
    name = "fp8_to_int_sym"
    schemes = (QuantizationScheme(4, 128, True, "fp8_to_int_sym"),)
