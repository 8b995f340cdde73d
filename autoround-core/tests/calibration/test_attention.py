# SPDX-License-Identifier: Apache-2.0
"""Attention by rows: the numbers, against torch in float64; what is left to torch; that blocks run with it."""

import pytest
import torch
import torch.nn.functional as F

from auto_round import AutoRound
from auto_round.calibration import attention, rows_of_attention
from auto_round.calibration.attention import attention_by_rows
from auto_round.calibration.inputs import capture_block_inputs
from auto_round.model.structure import find_structure

from .test_inputs import CONFIGS, make

CPU = torch.device("cpu")

# Relative to the size of all numbers together. float32: a dozen roundings of 2^-24. bfloat16: scores of around one, the
# probabilities made of them, answers and gradients are rounded to 8 bits each, by 2^-8 at most.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 8e-3}


def numbers(*shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def answered(tensors, gradient, **options):
    """The answer, and the gradients of what it was made of."""
    output = F.scaled_dot_product_attention(*tensors, **options)
    return [output.detach(), *torch.autograd.grad(output, tensors, gradient)]


def is_close(found, exact, dtype):
    return all(
        (x.double() - y).norm() <= TOLERANCE[dtype] * y.norm() and x.dtype == dtype
        for x, y in zip(found, exact, strict=True)
    )


@pytest.fixture
def taken(monkeypatch):
    """How many calls of attention were answered here, and not by torch."""
    calls, original = [], attention._attention

    def counted(*args, **kwargs):
        answer = original(*args, **kwargs)
        calls.append(answer is not None)
        return answer

    monkeypatch.setattr(attention, "_attention", counted)
    return calls


def window(length, size):
    """A sliding one, bool [1, 1, L, L]."""
    at = torch.arange(length)
    apart = at[:, None] - at[None]
    return ((apart >= 0) & (apart < size))[None, None]


SHAPES = {
    "one head": ((1, 1, 5, 4), (1, 1, 5, 4), (1, 1, 5, 4)),
    "several parts of rows": ((2, 4, 130, 8), (2, 4, 130, 8), (2, 4, 130, 8)),
    "heads that share keys, other values": ((3, 6, 70, 8), (3, 2, 70, 8), (3, 2, 70, 12)),
}
MASKS = {
    "causal": {"is_causal": True},
    "none": {},
    "window": {"attn_mask": lambda length: window(length, 3)},
    "wide window for each sample": {"attn_mask": lambda length: window(length, 66).expand(-1, -1, -1, -1)},
    "beginning and itself": {
        "attn_mask": lambda length: ((torch.arange(length) < 2) | torch.eye(length, dtype=torch.bool))[None, None]
    },
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("at_once", [1, 1 << 20])
@pytest.mark.parametrize("matrix_instructions", [False, True])
def test_numbers(dtype, shapes, mask, at_once, matrix_instructions, monkeypatch, taken):
    monkeypatch.setattr(rows_of_attention, "SCORES", at_once)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": matrix_instructions}, raising=False)
    tensors = numbers(*SHAPES[shapes], dtype=dtype)
    options = {k: make_mask(tensors[0].shape[2]) if callable(make_mask) else make_mask
               for k, make_mask in MASKS[mask].items()}  # fmt: skip
    options["enable_gqa"] = tensors[0].shape[1] != tensors[1].shape[1]
    options["scale"] = 0.7 if mask == "window" else None
    gradient = numbers((*tensors[0].shape[:3], tensors[2].shape[3]), dtype=dtype, seed=1)[0].detach()
    exact = answered([x.detach().double().requires_grad_() for x in tensors], gradient.double(), **options)
    with attention_by_rows(CPU):
        found = answered(tensors, gradient, **options)
    assert taken == [True]
    assert is_close(found, exact, dtype)


def test_keys_that_are_not_the_queries_own(taken):
    tensors = numbers((2, 2, 3, 4), (2, 2, 9, 4), (2, 2, 9, 4))
    mask = torch.ones(3, 9, dtype=torch.bool).tril(6).expand(2, 1, 3, 9)  # the last three of nine tokens
    gradient = torch.ones(2, 2, 3, 4)
    exact = answered([x.detach().double().requires_grad_() for x in tensors], gradient.double(), attn_mask=mask)
    with attention_by_rows(CPU):
        found = answered(tensors, gradient, attn_mask=mask)
    assert taken == [True]
    assert is_close(found, exact, torch.float32)


@pytest.mark.parametrize("lengths", [(3, 130), (130, 3), (130, 70), (70, 130)])
def test_causal_masks_begin_with_the_first_key(lengths, taken):
    queries, keys = lengths
    tensors = numbers((2, 2, queries, 4), (2, 2, keys, 4), (2, 2, keys, 4))
    gradient = torch.ones(2, 2, queries, 4)
    exact = answered([x.detach().double().requires_grad_() for x in tensors], gradient.double(), is_causal=True)
    with attention_by_rows(CPU):
        found = answered(tensors, gradient, is_causal=True)
    assert taken == [True]
    assert is_close(found, exact, torch.float32)


@pytest.mark.parametrize(("size", "skips"), [(3, True), (60, False)])
def test_narrow_windows_skip_what_they_hide_whatever_the_processor(size, skips, monkeypatch, taken):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    asked, original = [], rows_of_attention._probabilities
    monkeypatch.setattr(rows_of_attention, "_probabilities", lambda *args: asked.append(1) or original(*args))
    tensors = numbers((1, 1, 70, 8), (1, 1, 70, 8), (1, 1, 70, 8), dtype=torch.bfloat16)
    with attention_by_rows(CPU), torch.no_grad():
        F.scaled_dot_product_attention(*tensors, attn_mask=window(70, size))
    assert taken == [True]
    assert bool(asked) == skips


def turned(x):
    """The same numbers, laid out as models have them: heads after tokens."""
    return x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()


def test_one_reader_for_all_heads_need_not_be_said(taken):
    tensors, gradient = numbers((2, 4, 9, 8), (2, 1, 9, 8), (2, 1, 9, 8)), torch.ones(2, 4, 9, 8)
    exact = answered([x.detach().double().requires_grad_() for x in tensors], gradient.double(), is_causal=True)
    with attention_by_rows(CPU):
        found = answered(tensors, gradient, is_causal=True)
    assert taken == [True]
    assert is_close(found, exact, torch.float32)


def test_how_numbers_lie_in_memory_does_not_matter():
    tensors, gradient = numbers((2, 4, 9, 8), (2, 2, 9, 8), (2, 2, 9, 8)), torch.ones(2, 4, 9, 8)
    with attention_by_rows(CPU):
        plain = answered(tensors, gradient, is_causal=True, enable_gqa=True)
        other = answered([turned(x) for x in tensors], gradient, is_causal=True, enable_gqa=True)
    for x, y in zip(plain, other, strict=True):
        assert torch.equal(x, y)


LEFT = {
    "dropout": {"dropout_p": 1e-6},
    "a mask that adds": {"attn_mask": torch.zeros(1, 1, 4, 4)},
    "a mask for each head": {"attn_mask": torch.ones(1, 2, 4, 4, dtype=torch.bool)},
    "a mask for each sample": {"attn_mask": torch.ones(2, 1, 4, 4, dtype=torch.bool)},
    "a query that may look nowhere": {"attn_mask": torch.ones(1, 1, 4, 4, dtype=torch.bool).tril(-1)},
    "a mask beside a causal one": {"attn_mask": torch.ones(1, 1, 4, 4, dtype=torch.bool), "is_causal": True},
    "a mask without heads": {"attn_mask": torch.ones(4, 4, dtype=torch.bool)},
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left_to_torch(case, taken):
    tensors = numbers((2, 2, 4, 4), (2, 2, 4, 4), (2, 2, 4, 4))
    torch.manual_seed(0)
    expected = F.scaled_dot_product_attention(*tensors, **LEFT[case])
    with attention_by_rows(CPU):
        torch.manual_seed(0)
        found = F.scaled_dot_product_attention(*tensors, **LEFT[case])
    assert taken == [False]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("shapes", [((2, 4, 4), (2, 4, 4)), ((4,), (4,)), ((1, 2, 0, 4), (1, 2, 0, 4))])
def test_other_shapes_are_left_to_torch(shapes, taken):
    query, key = numbers(*shapes)
    with attention_by_rows(CPU):
        try:
            found = F.scaled_dot_product_attention(query, key, key)
        except (RuntimeError, IndexError):
            found = None
    assert taken == [False]
    assert found is None or found.shape == query.shape


def test_what_torch_refuses_is_refused(taken):
    query, key = numbers((1, 4, 3, 8), (1, 2, 3, 8))
    with attention_by_rows(CPU), pytest.raises(RuntimeError):
        F.scaled_dot_product_attention(query, key, key)  # without enable_gqa
    with attention_by_rows(CPU), pytest.raises(RuntimeError):
        F.scaled_dot_product_attention(query.bfloat16(), key.repeat(1, 2, 1, 1), key.repeat(1, 2, 1, 1))
    assert taken == [False, False]


def test_other_devices_and_what_follows_are_as_before(taken):
    tensors = numbers((1, 1, 3, 4), (1, 1, 3, 4), (1, 1, 3, 4))
    with attention_by_rows(torch.device("cuda")):
        F.scaled_dot_product_attention(*tensors)
    with pytest.raises(KeyError), attention_by_rows(CPU):
        raise KeyError
    F.scaled_dot_product_attention(*tensors)
    assert taken == []


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_blocks_answer_the_same(kind, taken):
    model = make(kind)
    structure = find_structure(model)
    ids = torch.randint(0, 60, (2, 9), generator=torch.Generator().manual_seed(0))

    def answer():
        recorded = capture_block_inputs(model, structure.block_list, ids, batch_size=2)
        hidden = recorded.hidden
        for name, call in zip(structure.blocks, recorded.calls[2], strict=True):
            hidden = call.run(model.get_submodule(name), hidden)
        return hidden

    expected = answer()
    with attention_by_rows(CPU):
        # float32: one rounding of 2^-24 for each of some ten operations on numbers around 1.
        torch.testing.assert_close(answer(), expected, rtol=1e-5, atol=1e-5)
    # The first of three blocks runs once more, for what blocks return; RWKV has no attention.
    assert taken == [True] * (0 if kind == "rwkv" else 4)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"iters": 1}, {"iters": 0, "recipe": "best"}, {"iters": 0, "e2e_iters": 1}])
def test_runs_use_it(options, registry, stored, taken):
    tokens = torch.randint(3, 60, (4, 16), generator=torch.Generator().manual_seed(0))
    rounder = AutoRound(stored("llama"), scheme="STEPS4", registry=registry, dataset=tokens, seqlen=16, batch_size=2,
                        nsamples=4, verbose=False, **options)  # fmt: skip
    model, _ = rounder.quantize()
    assert taken
    assert all(taken)
    taken.clear()
    model(input_ids=tokens)
    assert taken == []
