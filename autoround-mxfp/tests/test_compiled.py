# SPDX-License-Identifier: Apache-2.0
"""Kernels of the microscaling data types, compiled: few binades, many, and none."""

import pytest

from auto_round import QuantizationScheme
from auto_round.testing.conformance import CompiledTests

pytestmark = pytest.mark.slow


class TestFour(CompiledTests):
    name = "mx_fp4"
    schemes = (QuantizationScheme(4, 32, True, "mx_fp4"),)


class TestEight(CompiledTests):
    name = "mx_fp8e5m2"
    schemes = (QuantizationScheme(8, 32, True, "mx_fp8e5m2"),)


class TestWhole(CompiledTests):
    name = "mx_int8"
    schemes = (QuantizationScheme(8, 32, True, "mx_int8"),)
