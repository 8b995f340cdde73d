# SPDX-License-Identifier: Apache-2.0
"""The conformance suite on core's own toy data type; and that it finds what is wrong with bad ones."""

import pytest

from auto_round import QuantizationScheme
from auto_round.testing.conformance import DataTypeConformance


class TestSteps(DataTypeConformance):
    name = "steps"
    schemes = (QuantizationScheme(4, 32, True, "steps"), QuantizationScheme(6, -1, True, "steps"))
    idempotent = False  # its scales are rounded to float16
    scale_equivariant = (2.0,)
    search_may_lose = 10.0  # its search cuts off a tenth of the range, whatever that does

    @pytest.fixture
    def registry(self, registry):
        return registry
