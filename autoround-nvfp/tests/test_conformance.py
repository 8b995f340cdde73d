# SPDX-License-Identifier: Apache-2.0
"""FP4 with two levels of scales under core's conformance suite."""

from auto_round import QuantizationScheme
from auto_round.testing.conformance import DataTypeConformance


class TestNvFp4(DataTypeConformance):
    name = "nv_fp4"
    schemes = (QuantizationScheme(4, 16, True, "nv_fp4"),)
    one_scale = True  # the global one
    smooth = ("v",)  # scales are E4M3, one of eight between a number and its double
    tolerates = 2**-22  # a second global scale comes from a largest weight that was rounded in float32
    scale_dtypes = (None,)


class TestNvFp4V2(DataTypeConformance):
    name = "nvfp4_v2"
    schemes = (QuantizationScheme(4, 16, True, "nvfp4_v2"), QuantizationScheme(4, 32, True, "nvfp4_v2"))
    scale_dtypes = (None,)
