# SPDX-License-Identifier: Apache-2.0
"""Activations: per token, per tensor, in groups; scales computed as the model runs and scales fixed at calibration."""

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams, compute_dynamic_scales_and_zp

from auto_round import QuantizationScheme
from auto_round.data_type.activation import ActivationQuantizer
from auto_round_int.asymmetric import IntAsym
from auto_round_int.restricted import IntSymGptq
from auto_round_int.symmetric import IntSym

EACH = pytest.mark.parametrize("data_type", [IntSym(), IntAsym(), IntSymGptq()], ids=lambda d: d.name)
BITS = pytest.mark.parametrize("bits", [8, 4])
STRATEGIES = {-1: {"strategy": "token"}, 0: {"strategy": "tensor"}, 32: {"strategy": "group", "group_size": 32}}


def scheme_of(data_type, bits, group_size, *, dynamic):
    return QuantizationScheme(
        8, -1, data_type="int", act_bits=bits, act_group_size=group_size, act_sym=data_type.name != "int_asym",
        act_data_type=data_type.name, act_dynamic=dynamic,
    )  # fmt: skip


def hidden_states(dtype=torch.float32):
    hidden = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    hidden[..., 7] *= 20
    hidden[0, 1] = hidden[0, 1].abs()  # a token without a negative value
    hidden[0, 2] = 0
    return hidden.to(dtype)


@BITS
@pytest.mark.parametrize("group_size", STRATEGIES)
@pytest.mark.parametrize("data_type", [IntAsym(), IntSymGptq()], ids=lambda d: d.name)
def test_dynamic_ones_are_those_of_compressed_tensors(data_type, group_size, bits):
    hidden, sym = hidden_states(), data_type.name != "int_asym"
    seen = ActivationQuantizer(data_type, scheme_of(data_type, bits, group_size, dynamic=True))(hidden)
    args = QuantizationArgs(num_bits=bits, symmetric=sym, dynamic=True, **STRATEGIES[group_size])
    scale, zero_point = compute_dynamic_scales_and_zp(hidden, args, None)
    theirs = fake_quantize(hidden, scale, zero_point, args)
    if sym:
        assert torch.equal(seen, theirs)
    else:
        # The library adds the zero point before it rounds, which in float32 moves a value that lies halfway.
        off = (seen - theirs).abs()
        assert off.max() <= scale.max() * 1.0001
        assert (off > 1e-6 * hidden.abs().max()).float().mean() < 0.01


@EACH
@BITS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scales_are_float32_whatever_the_activations_are(data_type, bits, dtype):
    tiny = hidden_states(dtype) * 2**-17  # scales that float16 does not hold, and below its threshold
    quantizer = ActivationQuantizer(data_type, scheme_of(data_type, bits, -1, dynamic=True))
    seen = quantizer(tiny)
    assert seen.dtype == dtype
    # Scaled by a power of two, everything but the threshold of 1e-8 is the same.
    again = quantizer(hidden_states(dtype)) * 2**-17
    step = tiny.float().abs().amax(-1) / 2 ** (bits - 1)
    fine = step > 2e-8
    assert fine.any()
    assert torch.equal(seen[fine], again[fine])


@EACH
@BITS
@pytest.mark.parametrize("group_size", [0, -1])
def test_static_ones_have_one_scale_for_every_token(data_type, bits, group_size):
    hidden = hidden_states()
    low, high = hidden.amin().clamp(max=0), hidden.amax().clamp(min=0)
    scheme = scheme_of(data_type, bits, group_size, dynamic=False)
    frozen = data_type.freeze(low, high, scheme)
    quantizer = ActivationQuantizer(data_type, scheme, frozen)
    seen = quantizer(hidden)
    dynamic = ActivationQuantizer(data_type, scheme_of(data_type, bits, 0, dynamic=True))(hidden)
    # The frozen scale is rounded to bfloat16, by up to 2^-9 of its size: a value of n steps moves by n 2^-9 steps, and
    # may then be rounded the other way.
    step = (high - low) / (2**bits - 1)
    assert (seen - dynamic).abs().max() <= step * (1 + 2**bits * 2**-9)
    assert torch.equal(quantizer(hidden[:, :2]), seen[:, :2])  # whatever it is called with
    assert torch.equal(quantizer(hidden * 3).abs().amax(), quantizer(hidden * 30).abs().amax())  # and it ends there


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("low", "high"), [(-3.7, 9.1), (-9.1, 3.7), (0.0, 1e-6), (0.0, 0.0), (-2e4, 6e4), (0.0, 5.0)])
def test_every_dtype_holds_a_frozen_scale(data_type, dtype, low, high):
    scheme = scheme_of(data_type, 8, 0, dynamic=False)
    frozen = data_type.freeze(torch.tensor(low), torch.tensor(high), scheme)
    if "init_scale" in frozen:
        scale = frozen["init_scale"]
    else:
        scale = (frozen["tensor_max"] - frozen["tensor_min"]) / 255
        zero_point = -frozen["tensor_min"] / scale
        assert torch.equal(zero_point, zero_point.round())
        assert 0 <= zero_point <= 255
    assert scale.dtype == torch.float32
    assert scale.abs() >= 1e-5 * (1 - 2**-8)
    assert torch.equal(scale.to(dtype).float(), scale)


def test_a_frozen_scale_is_that_of_compressed_tensors():
    low, high = torch.tensor(-3.75), torch.tensor(9.5)
    args = QuantizationArgs(num_bits=8, symmetric=True, strategy="tensor")
    theirs, _ = calculate_qparams(low, high, args)
    ours = IntSymGptq().freeze(low, high, scheme_of(IntSymGptq(), 8, 0, dynamic=False))["init_scale"]
    assert ours.item() == theirs.bfloat16().item()


@EACH
def test_frozen_scales_serve_chunks_of_tokens(data_type, monkeypatch):
    scheme = scheme_of(data_type, 8, -1, dynamic=False)
    frozen = data_type.freeze(torch.tensor(-2.0), torch.tensor(2.5), scheme)
    quantizer = ActivationQuantizer(data_type, scheme, frozen)
    hidden = hidden_states()
    whole = quantizer(hidden)
    monkeypatch.setattr("auto_round_int.grid.CHUNK", 100)
    assert torch.equal(quantizer(hidden), whole)


@EACH
def test_the_gradient_goes_straight_through_where_nothing_is_cut_off(data_type):
    scheme = scheme_of(data_type, 8, 0, dynamic=False)
    frozen = data_type.freeze(torch.tensor(-1.0), torch.tensor(1.0), scheme)
    hidden = torch.tensor([[0.3, -0.2, 5.0, -5.0]], requires_grad=True)
    (found,) = torch.autograd.grad(ActivationQuantizer(data_type, scheme, frozen)(hidden).sum(), hidden)
    assert found.tolist() == [[1, 1, 0, 0]]
