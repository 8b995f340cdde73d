# SPDX-License-Identifier: Apache-2.0
"""torch's 4-bit kernel for CPUs against products with the decoded weight."""

import pytest
import torch

from auto_round import QuantizationScheme
from auto_round_int.asymmetric import IntAsym
from auto_round_int.restricted import IntSymGptq
from auto_round_int.symmetric import IntSym


def encoded(data_type, group_size, scale_dtype, shape=(48, 256), dtype=torch.bfloat16, bits=4):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype) * 0.1
    scheme = QuantizationScheme(bits, group_size, data_type.name != "int_asym", data_type.name)
    return data_type.encode(weight, scheme, scale_dtype=scale_dtype)


@pytest.mark.parametrize("data_type", [IntSym(), IntAsym(), IntSymGptq()], ids=lambda d: d.name)
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_products_are_those_of_the_decoded_weight(data_type, group_size, rows):
    codes = encoded(data_type, group_size, torch.bfloat16)
    kernel = data_type.kernel(codes)
    x = torch.randn(rows, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = x.double() @ data_type.decode(codes).double().T
    product = kernel(x)
    assert product.dtype == torch.bfloat16
    # Decoded weights are rounded to bfloat16, the kernel's are not, but what it adds for a zero point is: up to 2^-9 of
    # a term, which terms add up to as roots of squares do; four standard deviations. The product itself is rounded.
    bound = 4 * 2**-9 * (x.double().square() @ data_type.decode(codes).double().square().T).sqrt() + 2**-8 * exact.abs()
    assert ((product.double() - exact).abs() <= bound).all()


def test_what_the_kernel_does_not_take_is_left_to_others():
    for case in (
        {"group_size": 16}, {"group_size": 128, "bits": 3}, {"group_size": 128, "shape": (40, 256)},
        {"group_size": 128, "shape": (48, 200)}, {"group_size": 128, "dtype": torch.float32},
    ):  # fmt: skip
        assert IntSym().kernel(encoded(IntSym(), case.pop("group_size"), torch.float16, **case)) is None
