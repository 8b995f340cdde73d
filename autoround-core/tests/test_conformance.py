# SPDX-License-Identifier: Apache-2.0
"""The conformance suite on core's own toy data type; and that it finds what is wrong with bad ones."""

import os
import re
import subprocess
import sys

import pytest
import torch

from auto_round import QuantizationScheme
from auto_round.data_type.rounding import round_ste
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


def rounds_down(self, tensor, bits=4, group_size=32, v=0.0, max_scale=1.0):
    scale, v = tensor.abs().amax() / 7, v.reshape(tensor.shape) if isinstance(v, torch.Tensor) else v
    return (tensor / scale + v).floor() * scale, None, None


def seeds(self, tensor, bits=4, group_size=32):
    torch.manual_seed(3)
    return tensor, None, None


def other_weight(self, codes):
    return torch.zeros(codes.shape, dtype=codes.dtype)


def only_beyond(self, tensor, bits=4, group_size=32, v=0.0, max_scale=1.0):
    """Weights that are cut off do not feel the end they are cut off at."""
    scale = tensor.abs().amax() / 7 * (max_scale.mean() if isinstance(max_scale, torch.Tensor) else max_scale)
    v = v.reshape(tensor.shape) if isinstance(v, torch.Tensor) else v
    codes = round_ste(tensor / scale + v)
    kept = codes.clamp(-7, 7)
    return torch.where(codes.abs() > 7, kept * scale.detach(), kept * scale), None, None


def forgets_rows(self, tensor, bits=4, group_size=32):
    """Works through a weight four rows at a time, and stops at the last four."""
    groups = tensor.float().view(tensor.shape[0], -1, 8)
    scale = groups.abs().amax(-1, keepdim=True) / 7
    whole = tensor.shape[0] // 4 * 4 if tensor.shape[0] > 4 else tensor.shape[0]
    rounded = torch.where(scale > 0, (groups / scale).round() * scale, groups)
    return torch.cat([rounded[:whole], groups[whole:]]).view(tensor.shape).to(tensor.dtype), scale, None


def runs_over(self, tensor, bits=4, group_size=32):
    """Groups as if all rows were one."""
    padding = -tensor.numel() % group_size
    groups = torch.cat([tensor.float().flatten(), torch.zeros(padding)]).view(-1, group_size)
    scale = groups.abs().amax(-1, keepdim=True) / 7
    rounded = torch.where(scale > 0, (groups / scale).round() * scale, groups)
    return rounded.flatten()[: tensor.numel()].view(tensor.shape).to(tensor.dtype), scale, None


def two_results(self, tensor, bits=4, group_size=32):
    return tensor, None


def raises(self, tensor, bits=4, group_size=32):
    if tensor.isnan().any():
        raise KeyError("nan")
    return tensor, None, None


BROKEN = [
    ({"quant_tensor": wrong_dtype}, "test_shape_and_dtype_stay", ((16, 64), torch.float32), "in the dtype"),
    ({"quant_tensor": writes}, "test_inputs_are_left_alone", (), "must not write into their inputs"),
    ({"quant_tensor": divides_by_zero}, "test_zeros_stay_zeros", (), "without NaN from a scale of zero"),
    (
        {"quant_tensor": forgets_rows}, "test_rows_that_share_no_scale_stand_alone", ((5, 72),),
        "row 4 must come out as in a weight of nothing else",
    ),
    (
        {"quant_tensor": runs_over}, "test_rows_that_share_no_scale_stand_alone", ((5, 72),),
        "row [01] must come out as in a weight of nothing else",
    ),
    ({"quant_tensor": seeds}, "test_the_state_of_random_numbers_stays", (), "neither seed nor draw"),
    (
        {"quant_tensor": rounds_down}, "test_without_an_offset_rounding_is_to_the_nearest", (),
        "to the nearest value, and with v = 0.25 it comes nearer",
    ),
    ({"quant_tensor": wrong_sign}, "test_tuning_lowers_the_error_of_an_output", (False,), "sign right"),
    ({"quant_tensor": two_results}, "test_three_things_are_returned", (), "three .*, not a tuple of Tensor, NoneType"),
    (
        {"quant_tensor": raises}, "test_what_is_no_number_is_refused_or_does_not_spread", (float("nan"),),
        "a weight that is nan must raise an AutoRoundError, or keep what is no number within .* it raised KeyError",
    ),
    (
        {"quant_tensor": half_gradient}, "test_gradients_agree_with_finite_differences", (),
        "gradient of v is .* It is wrong inside the grid",
    ),
    (
        {"quant_tensor": only_beyond}, "test_gradients_agree_with_finite_differences", (),
        "gradient of max_scale is .* It is wrong at its ends and beyond",
    ),
    (
        {"decode": other_weight}, "test_decoded_codes_are_the_tuned_weight",
        ((16, 64), torch.float32, torch.float16), r"decode\(encode\(w\)\) must equal quant_tensor\(w\) bit for bit",
    ),
    ({"describe": lambda self: {"name": object()}}, "test_the_spec_card_is_plain_data", None, "JSON"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "test", "arguments", "told"), BROKEN, ids=[f"{n}-{test}" for n, (_, test, _, _) in enumerate(BROKEN)]
)
def test_what_is_broken_is_found(steps_plugin, changes, test, arguments, told):
    data_type = broken(steps_plugin, **changes)
    given = () if arguments is None else (SCHEME, *arguments)
    with pytest.raises((AssertionError, TypeError), match=told):
        getattr(TestSteps(), test)(data_type, *given)


def test_a_misspelt_name_is_one_failure(registry):
    suite = type("TestMisspelt", (TestSteps,), {"name": "stepz"})()
    with pytest.raises(pytest.fail.Exception, match=r"name = 'stepz': .* did you mean steps\?") as caught:
        suite.test_the_name_is_that_of_a_data_type(registry)
    assert "blocked" not in str(caught.value)
    TestSteps().test_the_name_is_that_of_a_data_type(registry)


SUITE = """
from auto_round import QuantizationScheme
from auto_round.testing.conformance import DataTypeConformance

class TestAcme(DataTypeConformance):
    name = "stepz"
    schemes = (QuantizationScheme(4, 32, True, "stepz"),)
"""


@pytest.mark.slow
def test_and_everything_else_is_skipped_then(tmp_path):
    """In a process of its own, without a configuration that knows the marker `slow`."""
    (tmp_path / "test_acme.py").write_text(SUITE)
    (tmp_path / "pytest.toml").write_text('[pytest]\nfilterwarnings = ["error"]\nstrict_markers = true\n')
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "test_acme.py"]
    environment = {**os.environ, "AUTO_ROUND_DTYPES": ""}
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert re.search(r"^1 failed, \d+ skipped, 2 deselected", done.stdout, re.MULTILINE), done.stdout[-3000:]
    told = "no installed plugin registers a data type of that name. Registered are: none."
    assert done.stdout.count(told) in {1, 2}  # with the summary
