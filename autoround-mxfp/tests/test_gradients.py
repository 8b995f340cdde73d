# SPDX-License-Identifier: Apache-2.0
"""The fused backward pass against the definition, written out an operation at a time and differentiated by autograd."""

import pytest
import torch

import auto_round_mxfp.microscaling as family
from auto_round.data_type.grouping import reshape_pad_tensor_by_group_size, revert_tensor_by_pad
from auto_round.schemes import QuantizationScheme

NAMES = ["mx_fp4", "mx_fp4_rceil_v2", "mx_fp6e3m2_rceil", "mx_fp8", "mx_fp8e5m2_rceil", "mx_int4", "mx_int8_rceil"]


def identity(function, x):
    """Something piecewise constant in the forward pass, nothing in the backward pass."""
    return x + (function(x) - x).detach()


def written_out(name, weight, v, max_scale, init_scale=None, bound=None):
    data_type = getattr(family, name)
    element, rule = data_type.element(None), data_type.rule
    groups, shape, pad = reshape_pad_tensor_by_group_size(weight.float(), 32)
    largest = groups.detach().abs().amax(-1, keepdim=True)

    def exponent(x):
        if rule.rounds_up:
            return identity(torch.ceil, torch.log2(x / (rule.limit or element.max)))
        return identity(torch.floor, torch.log2(x)) - element.largest_exponent

    shared = exponent(largest * max_scale.reshape(-1, 1))
    if init_scale is not None:
        shared = shared + (torch.log2(init_scale) - exponent(largest)).detach()
    scale = torch.exp2(shared.clamp(-127, 127))
    x = (groups / scale + v).clamp(-element.max, element.max)
    p = torch.zeros_like(x)
    if not element.whole:
        nonzero = torch.where(x == 0, 1.0, x.abs())
        p = identity(torch.floor, torch.log2(nonzero)).clamp(min=element.smallest_exponent)
    step = torch.exp2(p - element.mantissa_bits)
    return revert_tensor_by_pad(identity(torch.round, x / step) * step * scale, shape, pad).to(weight.dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("searched", [False, True])
def test_gradients_are_those_of_the_definition(name, dtype, searched):
    generator = torch.Generator().manual_seed(5)
    weight = (torch.randn(6, 100, generator=generator) * torch.logspace(-1, 1, 100)).to(dtype)
    blocks = 6 * 4
    v = torch.rand(blocks, 32, generator=generator) - 0.5
    max_scale = torch.rand(blocks, generator=generator) / 2 + 0.5
    # In the dtype of the weight, in which the gradient arrives.
    probe = torch.randn(6, 100, generator=generator).to(dtype).float()
    data_type = getattr(family, name)
    init_scale = None
    if searched:
        scheme = QuantizationScheme(bits=data_type.element(None).bits, group_size=32, data_type=name)
        init_scale = data_type.search(weight, scheme, imatrix=None, scale_dtype=torch.float16)["init_scale"]

    def differentiate(function, wide=False):
        learnt = [t.clone().requires_grad_() for t in (weight.float() if wide else weight, v, max_scale)]
        rounded = function(*learnt)
        (rounded.float() * probe).sum().backward()
        return rounded.detach(), [t.grad for t in learnt]

    ours, found = differentiate(lambda w, v, c: data_type.quant_tensor(w, v=v, max_scale=c, init_scale=init_scale)[0])
    # In float32 throughout: in a narrow dtype autograd would round what flows through the final cast.
    theirs, wanted = differentiate(lambda w, v, c: written_out(name, w, v, c, init_scale), wide=True)
    assert torch.equal(ours, theirs.to(dtype))
    # Only the gradient of the weight is rounded to its dtype.
    rounding = {torch.float32: 2**-20, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    torch.testing.assert_close(found[0].float(), wanted[0], rtol=rounding, atol=0)
    torch.testing.assert_close(found[1], wanted[1], rtol=2**-20, atol=0)
    # Sums over blocks with cancelling: relative to what is summed.
    size = reshape_pad_tensor_by_group_size((probe * theirs).abs() + (probe * weight.float()).abs(), 32)[0].sum(-1)
    assert ((found[2] - wanted[2]).abs() <= 2**-20 * size / max_scale).all()


def test_what_is_cut_off_has_no_gradient_and_the_largest_value_has():
    block = torch.zeros(1, 32)
    block[0, :3] = torch.tensor([7.9, 6.0, -6.0])
    block.requires_grad_()
    family.mx_fp4.quant_tensor(block)[0].sum().backward()
    assert block.grad[0, :4].tolist() == [0, 1, 1, 1]


def test_a_number_as_offset_and_one_factor_for_all():
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    factor = torch.tensor([0.8], requires_grad=True)
    each = torch.full((8,), 0.8, requires_grad=True)
    for learnt in (factor, each):
        rounded, _, _ = family.mx_fp4.quant_tensor(weight, v=0.25, max_scale=learnt)
        (rounded * weight).sum().backward()
    assert torch.equal(rounded, family.mx_fp4.quant_tensor(weight, v=torch.full((8, 32), 0.25), max_scale=each)[0])
    assert factor.grad.shape == (1,)
    # One sum in two orders.
    torch.testing.assert_close(factor.grad[0], each.grad.sum(), rtol=1e-5, atol=0)


def test_nothing_of_the_size_of_the_weight_is_kept_beyond_what_exists():
    weight, v = torch.randn(64, 256, dtype=torch.bfloat16), torch.zeros(512, 32, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rounded = family.mx_fp4.quant_tensor(weight, v=v, max_scale=torch.ones(512, requires_grad=True))[0]
    existing = {t.untyped_storage().data_ptr() for t in (weight, v, rounded)}
    large = [t for t in kept if t.numel() > 512]
    assert {t.untyped_storage().data_ptr() for t in large} <= existing
