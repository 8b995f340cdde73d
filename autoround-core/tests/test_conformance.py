# SPDX-License-Identifier: Apache-2.0
"""The conformance suite on core's own toy data type; and that it finds what is wrong with bad ones."""

import pytest
import torch

from auto_round import QuantizationScheme
from auto_round.testing.conformance import DataTypeConformance

SCHEME = QuantizationScheme(4, 32, True, "steps")


class TestSteps(DataTypeConformance):
    name = "steps"
    schemes = (SCHEME, QuantizationScheme(6, -1, True, "steps"))
    idempotent = False  # its scales are rounded to float16
    scale_equivariant = (2.0,)
    search_may_lose = 10.0  # its search cuts off a tenth of the range, whatever that does

    @pytest.fixture
    def registry(self, registry):
        """The one of core's tests, which holds nothing else."""
        return registry


def broken(steps_plugin, **changes):
    """The toy data type with something wrong."""
    (good,) = steps_plugin.quant_tensor()
    return type("Broken", (type(good),), {"searches": False, **changes})()


def wrong_dtype(self, tensor, bits=4, group_size=32):
    return tensor.double(), None, None


def writes(self, tensor, bits=4, group_size=32):
    tensor[0] = 0
    return tensor, None, None


def divides_by_zero(self, tensor, bits=4, group_size=32):
    return tensor / tensor.abs().amax(-1, keepdim=True), None, None


def wrong_sign(self, tensor, bits=4, group_size=32, v=0.0):
    scale, v = tensor.abs().amax() / 7, torch.as_tensor(v).reshape(tensor.shape) if isinstance(v, torch.Tensor) else v
    codes = (tensor / scale - v).round().detach()
    return (codes + v - (v.detach() if isinstance(v, torch.Tensor) else v)) * scale, None, None


def half_gradient(self, tensor, bits=4, group_size=32, v=0.0, max_scale=1.0):
    scale, v = tensor.abs().amax() / 7, torch.as_tensor(v).reshape(tensor.shape) if isinstance(v, torch.Tensor) else v
    codes = (tensor / scale + v).round().detach()
    return (codes + 0.5 * (v - (v.detach() if isinstance(v, torch.Tensor) else v))) * scale, None, None


def other_weight(self, codes):
    return torch.zeros(codes.shape, dtype=codes.dtype)


BROKEN = [
    ({"quant_tensor": wrong_dtype}, "test_shape_and_dtype_stay", ((16, 64), torch.float32), "in the dtype"),
    ({"quant_tensor": writes}, "test_inputs_are_left_alone", (), "must not write into their inputs"),
    ({"quant_tensor": divides_by_zero}, "test_zeros_stay_zeros", (), "without NaN from a scale of zero"),
    ({"quant_tensor": wrong_sign}, "test_tuning_lowers_the_error_of_an_output", (False,), "sign right"),
    ({"quant_tensor": half_gradient}, "test_gradients_agree_with_finite_differences", (), "gradient of v is"),
    (
        {"decode": other_weight}, "test_decoded_codes_are_the_tuned_weight",
        ((16, 64), torch.float32, torch.float16), r"decode\(encode\(w\)\) must equal quant_tensor\(w\) bit for bit",
    ),
    ({"describe": lambda self: {"name": object()}}, "test_the_spec_card_is_plain_data", None, "JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "test", "arguments", "told"), BROKEN, ids=[test for _, test, _, _ in BROKEN])
def test_what_is_broken_is_found(steps_plugin, changes, test, arguments, told):
    data_type = broken(steps_plugin, **changes)
    given = () if arguments is None else (SCHEME, *arguments)
    with pytest.raises((AssertionError, TypeError), match=told):
        getattr(TestSteps(), test)(data_type, *given)
