# SPDX-License-Identifier: Apache-2.0
"""The integer data types under core's conformance suite."""

import pytest

from auto_round import QuantizationScheme
from auto_round.testing.conformance import DataTypeConformance

pytestmark = pytest.mark.slow

GROUPS = ((2, 32), (3, -1), (4, 64), (5, 0), (8, 128))


class Integers(DataTypeConformance):
    scale_equivariant = (2.0, 0.25)
    search_may_lose = 1.5  # it counts a changed gain as well, up to five times as much as noise


class TestSymmetric(Integers):
    name = "int_sym"
    schemes = tuple(QuantizationScheme(bits, group, True, "int_sym") for bits, group in GROUPS)
    # The largest weight lies on the grid, at its end, and the scale it gives is the one it came from.
    idempotent = True


class TestAsymmetric(Integers):
    name = "int_asym"
    schemes = tuple(QuantizationScheme(bits, group, False, "int_asym") for bits, group in GROUPS)
    # The range is rounded to whole steps, and a second pass finds that range: another scale, another grid.
    idempotent = False


class TestRestricted(Integers):
    name = "int_sym_gptq"
    schemes = tuple(QuantizationScheme(bits, group, True, "int_sym_gptq") for bits, group in GROUPS)
    idempotent = False
