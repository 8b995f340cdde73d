# SPDX-License-Identifier: Apache-2.0
"""8-bit floats under core's conformance suite."""

import pytest
import torch

from auto_round import QuantizationScheme
from auto_round.testing.conformance import DataTypeConformance

pytestmark = pytest.mark.slow

GROUPS = (0, -1, 32, (16, 32))


def schemes(name, groups=GROUPS):
    return tuple(QuantizationScheme(8, group, True, name) for group in groups)


class TestE4M3(DataTypeConformance):
    name = "fp8_e4m3"
    schemes = schemes("fp8_e4m3", GROUPS[:3])
    scale_dtypes = (torch.float32, torch.bfloat16)
    search_may_lose = 1.01


class TestE5M2(DataTypeConformance):
    name = "fp8_e5m2"
    schemes = schemes("fp8_e5m2", GROUPS[:3])
    scale_dtypes = (torch.float32,)
    smooth = ()  # v counts in units of the scale, and steps are up to 8192 of them: no average reaches across one


class TestBlocks(DataTypeConformance):
    name = "block_fp8"
    schemes = schemes("fp8", GROUPS[3:])
    scale_dtypes = (torch.float32,)


class TestUnitScale(DataTypeConformance):
    name = "fp8_unit_scale"
    schemes = schemes("fp8_unit_scale", (0,))
    scale_dtypes = (None,)
    scale_equivariant = ()  # small numbers fall among the subnormal ones
    offsets_matter = False  # v counts in units of a scale that is 1, weights are a twentieth of it


class TestHybrid(DataTypeConformance):
    name = "fp8_to_int_sym"
    schemes = (QuantizationScheme(4, 32, True, "fp8_to_int_sym"),)
    one_scale = True  # that of e4m3, below the integers
    scale_dtypes = (torch.float32,)
