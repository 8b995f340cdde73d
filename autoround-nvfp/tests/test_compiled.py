# SPDX-License-Identifier: Apache-2.0
"""Kernels of the block-scaled data types, compiled."""

import pytest

from auto_round import QuantizationScheme
from auto_round.testing.conformance import CompiledTests

pytestmark = pytest.mark.slow


class TestTwoLevels(CompiledTests):
    name = "nv_fp4"
    schemes = (QuantizationScheme(4, 16, True, "nv_fp4"),)
