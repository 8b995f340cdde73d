# SPDX-License-Identifier: Apache-2.0
"""Fused experts against transformers' own reader of gpt-oss checkpoints."""

import pytest
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import auto_round_mxfp.microscaling as family
from auto_round.errors import ContractError
from auto_round.schemes import QuantizationScheme
from auto_round_mxfp.fused_experts import pack_experts, unpack_experts

SCHEME = QuantizationScheme(bits=4, group_size=32, data_type="mx_fp")


def encoded(experts=3, shape=(16, 96)):
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(experts, *shape, generator=generator) * torch.logspace(-6, 6, shape[1])
    return [family.mx_fp4.encode(weight.bfloat16(), SCHEME) for weight in weights]


def test_transformers_reads_the_weights_that_were_encoded():
    codes = encoded()
    blocks, scales = pack_experts(codes)
    assert (blocks.shape, blocks.dtype) == ((3, 16, 3, 16), torch.uint8)
    assert (scales.shape, scales.dtype) == ((3, 16, 3), torch.uint8)
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    assert theirs.shape == (3, 96, 16)
    for expert, wanted in zip(theirs, codes, strict=True):
        assert torch.equal(expert.T, family.mx_fp4.decode(wanted))


def test_unpacking_gives_the_codes_back():
    codes = encoded()
    back = unpack_experts(*pack_experts(codes), "mx_fp4", SCHEME, torch.bfloat16)
    for found, wanted in zip(back, codes, strict=True):
        assert found.shape == wanted.shape
        assert all(torch.equal(found.tensors[n], t) for n, t in wanted.tensors.items())


def test_every_code_is_read_as_its_value():
    codes = torch.arange(16, dtype=torch.uint8).repeat(2).reshape(1, 1, 1, 32)
    blocks = codes[..., ::2] | codes[..., 1::2] << 4
    for exponent in (0, 1, 100, 127, 200):
        scales = torch.full((1, 1, 1), exponent, dtype=torch.uint8)
        [found] = unpack_experts(blocks, scales, "mx_fp4", SCHEME, torch.bfloat16)
        theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
        assert torch.equal(family.mx_fp4.decode(found), theirs[0].T)


def test_what_does_not_fit_is_refused():
    wide = family.mx_fp8.encode(torch.randn(4, 64), SCHEME.replace(bits=8))
    with pytest.raises(ContractError, match="stored as e2m1 in whole blocks of 32, not mx_fp8"):
        pack_experts([wide])
    with pytest.raises(ContractError, match="all of one shape"):
        pack_experts([*encoded(1), *encoded(1, (8, 96))])
