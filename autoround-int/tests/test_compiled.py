# SPDX-License-Identifier: Apache-2.0
"""Kernels of the integer data types, compiled."""

import pytest

from auto_round import QuantizationScheme
from auto_round.testing.conformance import CompiledTests

pytestmark = pytest.mark.slow


class TestSymmetric(CompiledTests):
    name = "int_sym"
    schemes = (QuantizationScheme(4, 128, True, "int_sym"),)


class TestAsymmetric(CompiledTests):
    name = "int_asym"
    schemes = (QuantizationScheme(8, 32, False, "int_asym"),)
