# SPDX-License-Identifier: Apache-2.0
"""Encoding, bytes and decoding of every block type, against the gguf package and ggml's C code."""

import pytest
import torch
from hypothesis import given, settings, strategies

from auto_round.errors import SchemeError
from auto_round_gguf import block
from auto_round_gguf.layouts import codes_of, pack_blocks, unpack_blocks
from auto_round_gguf.schemes import plain_scheme
from auto_round_gguf.types import BLOCK_TYPES, SUPER_BLOCK

KINDS = list(BLOCK_TYPES.values())
LEGACY = [k for k in KINDS if k.super_bits is None]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)


def data_type(kind):
    return getattr(block, kind.name.upper())


def learnt(weight, kind, seed=1):
    generator = torch.Generator().manual_seed(seed)
    groups = weight.numel() // kind.group
    return {
        "v": torch.rand(groups, kind.group, generator=generator) - 0.5,
        "min_scale": 0.5 + torch.rand(groups, generator=generator) / 2,
        "max_scale": 0.5 + torch.rand(groups, generator=generator) / 2,
    }


def same_bits(a, b):
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@every_kind
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offered", ["nothing", "learnt", "searched", "searched and learnt"])
def test_what_is_decoded_is_what_was_tuned(weights, kind, dtype, offered):
    quantizer, scheme = data_type(kind), plain_scheme(kind)
    for name, weight in weights.items():
        if dtype == torch.float16 and name == "degenerate":
            continue  # 1e4 times a normal number overflows it
        narrow = weight[:8].to(dtype)
        offers = learnt(narrow, kind) if "learnt" in offered else {}
        if "searched" in offered:
            offers |= quantizer.search(narrow, scheme, imatrix=None, scale_dtype=torch.float16)
        tuned, _, _ = quantizer.quant_tensor(narrow, **offers)
        codes = quantizer.encode(narrow, scheme, **offers)
        decoded = quantizer.decode(codes)
        assert tuned.dtype == decoded.dtype == dtype
        assert torch.equal(decoded, tuned), name
        assert all(t.shape[0] == len(narrow) for t in codes.tensors.values())


@every_kind
def test_gguf_reads_our_bytes_as_we_do(weights, kind, dequantize):
    quantizer, scheme = data_type(kind), plain_scheme(kind)
    for weight in weights.values():
        for offers in ({}, learnt(weight, kind), quantizer.search(weight, scheme, imatrix=None, scale_dtype=None)):
            codes = quantizer.encode(weight, scheme, **offers)
            data = pack_blocks(codes.tensors, kind)
            assert data.shape == (len(weight), weight.shape[1] // kind.block * kind.nbytes)
            assert same_bits(dequantize(data, kind), quantizer.decode(codes))
            again = codes_of(data, codes.data_type, kind, scheme, codes.dtype)
            assert again.shape == codes.shape
            assert all(torch.equal(again.tensors[name], tensor) for name, tensor in codes.tensors.items())


@pytest.mark.parametrize("kind", LEGACY, ids=lambda k: k.name)
def test_plain_rounding_is_ggmls_own(weights, kind, ggml):
    for name, weight in weights.items():
        data = pack_blocks(data_type(kind).encode(weight, plain_scheme(kind)).tensors, kind)
        assert torch.equal(data, ggml.quantize(weight, kind)), name


@pytest.mark.parametrize("kind", LEGACY, ids=lambda k: k.name)
def test_halves_and_equal_extremes_go_ggmls_way(kind, ggml):
    """Weights on a coarse grid: half of them lie between two codes, many groups have two extremes of one size."""
    weight = torch.randint(-16, 17, (64, 512), generator=torch.Generator().manual_seed(4)) / 32
    data = pack_blocks(data_type(kind).encode(weight, plain_scheme(kind)).tensors, kind)
    assert torch.equal(data, ggml.quantize(weight, kind))


@every_kind
@settings(max_examples=25, deadline=None)
@given(seed=strategies.integers(0, 2**32 - 1))
def test_every_byte_survives(kind, seed):
    """Any bytes are codes, and these the same bytes again."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.randint(0, 256, (3, kind.nbytes * 2), generator=generator, dtype=torch.uint8)
    assert torch.equal(pack_blocks(unpack_blocks(data, kind), kind), data)


@every_kind
def test_bits_per_weight_are_those_of_the_file(kind):
    quantizer, scheme = data_type(kind), plain_scheme(kind)
    weight = torch.randn(4, 2 * SUPER_BLOCK)
    data = pack_blocks(quantizer.encode(weight, scheme).tensors, kind)
    assert quantizer.bits_per_weight(scheme, (4, 2 * SUPER_BLOCK)) == data.numel() * 8 / weight.numel()


@every_kind
def test_rows_of_other_lengths_are_refused(kind):
    with pytest.raises(SchemeError, match="blocks of"):
        data_type(kind).quant_tensor(torch.randn(4, 200))


def test_an_offer_nobody_knows_is_refused():
    with pytest.raises(TypeError, match="'zero'"):
        block.Q4_K.encode(torch.randn(2, 256), plain_scheme(BLOCK_TYPES["q4_k"]), zero=1)
