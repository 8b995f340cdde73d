# SPDX-License-Identifier: Apache-2.0
"""The conformance suite: what the contract of a data type wants, as tests to inherit.

    from auto_round import QuantizationScheme
    from auto_round.testing.conformance import DataTypeConformance


    class TestAcme(DataTypeConformance):
        name = "acme_nf4"
        schemes = (QuantizationScheme(4, 64, True, "acme_nf4"),)
        scale_equivariant = (2.0,)

What a data type cannot do is declared on the class, see `Declared`, or in its record (`encodes`, `searches`, `tuned`),
and is skipped with that reason. `CompiledTests` are for kernels that may be compiled, and inherited by themselves.
Needs pytest, which the extra `testing` brings.
"""

from auto_round.testing.conformance.base import Declared, weight_like
from auto_round.testing.conformance.compiled import CompiledTests
from auto_round.testing.conformance.learning import LearningTests
from auto_round.testing.conformance.road import RoadTests
from auto_round.testing.conformance.stacking import StackingTests
from auto_round.testing.conformance.stored import StoredTests
from auto_round.testing.conformance.values import ValueTests

__all__ = ["CompiledTests", "DataTypeConformance", "Declared", "weight_like"]


class DataTypeConformance(ValueTests, LearningTests, StackingTests, StoredTests, RoadTests):
    """Everything; subclass it once for each registered name."""
