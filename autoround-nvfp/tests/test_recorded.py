# SPDX-License-Identifier: Apache-2.0
"""The plain and the learnt form against vectors of the known implementation, and the gradients against autograd."""

import pytest
import torch

from auto_round.data_type.grouping import reshape_pad_tensor_by_group_size, revert_tensor_by_pad
from auto_round_nvfp.minifloat import round_e2m1_
from auto_round_nvfp.nvfp import NvFp4, NvFp4StaticGlobalScale, NvFp4V2

RECORDED = pytest.mark.parametrize(
    ("name", "data_type"),
    [("nv_fp4", NvFp4()), ("nv_fp4_with_static_gs", NvFp4StaticGlobalScale()), ("nvfp4_v2", NvFp4V2())],
    ids=["nv_fp4", "nv_fp4_with_static_gs", "nvfp4_v2"],
)


def reciprocal(x):
    return torch.where(x == 0, 0.0, 1 / x)


def learnt_of(tensors):
    return {name: tensors[name] for name in ("v", "max_scale") if name in tensors}


def twice_inverted(tensors, case):
    """The recorded arithmetic: the step is 1 / (1 / (s (1 / G))), where runtimes compute s / G, rounded once."""
    weight = tensors["weight"].float()
    groups, shape, pad = reshape_pad_tensor_by_group_size(weight, case["group_size"])
    inverse = reciprocal(tensors["scale"] * reciprocal(448.0 * 6.0 / weight.abs().max()))
    q = round_e2m1_((groups * inverse + tensors.get("v", 0)).clamp(-6, 6))
    return revert_tensor_by_pad(q * reciprocal(inverse), shape, pad).to(tensors["qdq"].dtype)


@RECORDED
def test_values_are_the_recorded_ones(recorded, name, data_type):
    exact = compared = 0
    for case, tensors in recorded(name):
        learnt, wanted = learnt_of(tensors), tensors["qdq"]
        rounded, scale, zero_point = data_type.quant_tensor(tensors["weight"], case["group_size"], **learnt)
        assert zero_point is None
        assert torch.equal(scale, tensors["scale"]), case
        compared += 1
        if torch.equal(rounded, wanted):
            exact += 1
            continue
        # Only float32 weights under two levels of scales are left: the same elements, times a step whose last bit
        # differs. With the recorded step in its place everything is equal.
        assert data_type.block_scale.two_levels, case
        assert wanted.dtype == torch.float32, case
        assert torch.equal(twice_inverted(tensors, case), wanted), case
        torch.testing.assert_close(rounded, wanted, rtol=2 * 2**-23, atol=0)
    assert compared >= 5
    assert exact >= 0.6 * compared


def straight_through(x, rounded):
    return x + (rounded - x).detach()


def written_out(data_type, weight, group_size, v, max_scale, amax=None, global_scale=None):
    """The definition, an operation at a time, differentiated by autograd."""
    scale_format = data_type.block_scale.format
    groups, shape, pad = reshape_pad_tensor_by_group_size(weight.float(), group_size)
    amax = groups.abs().amax(-1) if amax is None else amax
    size = 448.0 * 6.0 / weight.detach().abs().max().float() if global_scale is None else global_scale
    size = size if data_type.block_scale.two_levels else torch.tensor(1.0)
    exact = (size * (amax * max_scale / 6)).clamp(-scale_format.largest, scale_format.largest)
    scale = straight_through(exact, scale_format.load(scale_format.store(exact.detach())))
    step = (scale / size).unsqueeze(-1)
    x = (groups / step.where(step != 0, float("inf")) + v).clamp(-6, 6)
    q = straight_through(x, round_e2m1_(x.detach().clone()))
    return revert_tensor_by_pad((q * step).to(weight.dtype), shape, pad)


@pytest.mark.parametrize("data_type", [NvFp4(), NvFp4V2()], ids=lambda d: d.name)
def test_gradients_are_the_recorded_ones(recorded, data_type):
    compared = 0
    for case, tensors in recorded(data_type.name):
        if not case["tuned"]:
            continue
        grad = {}
        for which in ("ours", "autograd"):
            learnt = {name: t.clone().requires_grad_() for name, t in learnt_of(tensors).items()}
            weight, size = tensors["weight"], case["group_size"]
            if which == "ours":
                rounded, *_ = data_type.quant_tensor(weight, size, **learnt)
            else:
                rounded = written_out(data_type, weight, size, **learnt)
            (rounded.float() * tensors["probe"]).sum().backward()
            grad[which] = {name: t.grad for name, t in learnt.items()}
        # By v it is the step, by the factor a sum over the block of terms up to |probe| A: float32 sums in another
        # order, and the last bit of a step, differ by a few units of 2^-23 of that size.
        grouped, *_ = reshape_pad_tensor_by_group_size(tensors["probe"].abs(), size)
        groups, *_ = reshape_pad_tensor_by_group_size(weight.float(), size)
        amax = groups.abs().amax(-1)
        bounds = {"v": 2 * 2**-23 * tensors["grad.v"].abs(), "max_scale": 4 * 2**-23 * grouped.sum(-1) * amax}
        # Blocks of zeros were recorded as NaN, 0 / 0; a step along the sign of that would have spoilt the factor.
        assert tensors["grad.max_scale"][amax == 0].isnan().all()
        assert (grad["ours"]["max_scale"][amax == 0] == 0).all()
        for name, bound in bounds.items():
            finite = ~tensors[f"grad.{name}"].isnan()
            for other in (tensors[f"grad.{name}"], grad["autograd"][name]):
                difference = (grad["ours"][name] - other).abs()
                assert (difference <= bound)[finite].all(), (case, name)
            assert grad["ours"][name].isfinite().all()
        compared += 1
    assert compared >= 5


@pytest.mark.parametrize("data_type", [NvFp4(), NvFp4StaticGlobalScale(), NvFp4V2()], ids=lambda d: d.name)
def test_activations_get_the_gradient_of_the_definition(data_type, normal):
    """Scales are constants to it; autograd of the definition says the rest."""
    x, probe, global_scale = normal(3, 8, 64), normal(24, 64, seed=1), torch.tensor(500.0)
    given = {"global_scale": global_scale} if data_type.block_scale.two_levels else {}
    ours, autograd = x.clone().requires_grad_(), x.view(24, 64).clone().requires_grad_()
    rounded, *_ = data_type.quant_tensor(ours, 16, **given)
    (rounded.view(24, 64) * probe).sum().backward()
    amax = x.view(-1, 16).abs().amax(-1)
    wanted = written_out(data_type, autograd, 16, 0, 1.0, amax, global_scale)
    (wanted * probe).sum().backward()
    assert torch.equal(rounded.view(24, 64), wanted)
    # Autograd multiplies by the step and divides by it again: two roundings of float32.
    torch.testing.assert_close(ours.grad.view(24, 64), autograd.grad, rtol=2**-22, atol=0)
    assert (ours.grad == 0).any(), "block scales that were rounded down cut something off"
