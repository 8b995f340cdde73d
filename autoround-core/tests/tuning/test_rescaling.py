# SPDX-License-Identifier: Apache-2.0
"""Channels that can be scaled: found in every architecture by trying, and believed only where no bit changes."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from auto_round.calibration.inputs import capture_block_inputs
from auto_round.model.experts import split_experts
from auto_round.model.structure import find_structure
from auto_round.tuning.places import find_rescalings
from auto_round.tuning.rescaling import Rescaling, rescale

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
VALUES = ("self_attn.v_proj", ("self_attn.o_proj",))
LLAMA = {
    VALUES,
    ("mlp.up_proj", ("mlp.down_proj",)),
    ("input_layernorm", QKV),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
}
EXPERTS = [f"mlp.experts.{n}" for n in range(4)]
ROUTED = {
    VALUES,
    ("input_layernorm", QKV),
    ("post_attention_layernorm", ("mlp.gate", *(f"{e}.{p}" for e in EXPERTS for p in ("gate_proj", "up_proj")))),
    *((f"{e}.up_proj", (f"{e}.down_proj",)) for e in EXPERTS),
}
PLACES = {
    "llama": LLAMA,
    "qwen3_moe": ROUTED,
    "mixtral": ROUTED,
    "gpt2": {("ln_1", ("attn.c_attn",)), ("ln_2", ("mlp.c_fc",))},  # gains with a bias, linear layers turned round
    # Its gains are added to 1, so that scaling them is not scaling what comes out.
    "gemma3": {VALUES, ("mlp.up_proj", ("mlp.down_proj",))},
}


def prepared(directory, dtype):
    """The last block of a small model, and a function that runs it on sixteen tokens."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval().requires_grad_(False)
    split_experts(model)
    structure = find_structure(model)
    ids = torch.randint(4, 250, (1, 16), generator=torch.Generator().manual_seed(2))
    recorded = capture_block_inputs(model, structure.block_list, ids, 1)
    block, call = model.get_submodule(structure.blocks[-1]), recorded.calls[1][-1]
    return block, lambda: call.run(block, recorded.hidden)


def told(places):
    return {(place.writer, tuple(sorted(place.readers))) for place in places}


@pytest.mark.parametrize("architecture", PLACES)
def test_places_are_found_and_leave_every_bit_as_it_was(stored, architecture):
    block, run = prepared(stored(architecture), torch.float32)
    before = {name: p.clone() for name, p in block.named_parameters()}
    places = find_rescalings(block, run)
    assert told(places) == {(writer, tuple(sorted(readers))) for writer, readers in PLACES[architecture]}
    assert all(torch.equal(p, before[name]) for name, p in block.named_parameters())

    # All at once, by other powers of two than those it was tried with, in the dtype of the file.
    block, run = prepared(stored(architecture), torch.bfloat16)
    output = run()
    generator = torch.Generator().manual_seed(3)
    for place in places:
        count = max(int(rows.max()) for rows in place.readers.values()) + 1
        rescale(block, place, torch.randint(-5, 6, (count,), generator=generator).float())
    assert torch.equal(run(), output)
    assert not all(torch.equal(p, before[name]) for name, p in block.named_parameters())


def test_values_of_a_group_of_heads_are_read_by_all_of_them(stored):
    block, run = prepared(stored("llama"), torch.float32)  # four heads of eight, two of keys and values
    rows = next(p for p in find_rescalings(block, run) if p.writer == "self_attn.v_proj").readers["self_attn.o_proj"]
    first, second = torch.arange(8), torch.arange(8, 16)
    assert rows.tolist() == torch.cat([first, first, second, second]).tolist()


class Gain(nn.Module):
    """A norm with a gain and, if wanted, a bias."""

    def __init__(self, width, bias=False):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5, requires_grad=False)
        self.bias = nn.Parameter(torch.randn(width), requires_grad=False) if bias else None

    def forward(self, x):
        y = x * x.square().mean(-1, keepdim=True).rsqrt() * self.weight
        return y if self.bias is None else y + self.bias


class Invented(nn.Module):
    """A block no library has; `of` says what happens to the normed input beside the two layers that read it."""

    def __init__(self, of, bias=False):
        super().__init__()
        self.start, self.one, self.two = Gain(8, bias), nn.Linear(8, 300, bias=False), nn.Linear(8, 300)
        self.last, self.of = nn.Linear(300, 8, bias=False), of
        self.requires_grad_(False)

    def forward(self, x):
        y = self.start(x)
        return x + self.last(self.one(y).tanh() * self.two(y)) + self.of(y)


NOTHING = torch.zeros_like
FREE = {("start", ("one", "two")), ("two", ("last",))}


@pytest.mark.parametrize("bias", [False, True])
def test_an_architecture_that_nobody_knows(bias):
    torch.manual_seed(0)
    block, x = Invented(NOTHING, bias), torch.randn(1, 16, 8)
    places = find_rescalings(block, lambda: block(x))
    assert told(places) == FREE
    rows = next(p for p in places if p.writer == "two").readers["last"]
    assert torch.equal(rows, torch.arange(300))  # more rows than one digit tells apart


OTHER_READERS = {
    "the block's output": lambda y: y,
    "a little of it": lambda y: 1e-3 * y,
    "a nonlinear gate": torch.sigmoid,
    "its direction": lambda y: nn.functional.normalize(y, dim=-1),
}


@pytest.mark.parametrize("reader", OTHER_READERS)
def test_a_gain_that_something_else_reads_stays(reader):
    torch.manual_seed(0)
    block, x = Invented(OTHER_READERS[reader]), torch.randn(1, 16, 8)
    assert told(find_rescalings(block, lambda: block(x))) == {("two", ("last",))}


def test_a_layer_that_minds_its_columns_keeps_them():
    """A router that looks at directions is no linear layer, whatever its weight looks like."""

    class Router(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8), requires_grad=False)

        def forward(self, x):
            return nn.functional.linear(nn.functional.normalize(x, dim=-1), self.weight)

    torch.manual_seed(0)
    router, x = Router(), torch.randn(1, 16, 8)
    block = Invented(router)
    assert told(find_rescalings(block, lambda: block(x))) == {("two", ("last",))}


def test_a_channel_that_never_lives_tells_nothing():
    torch.manual_seed(0)
    block, x = Invented(NOTHING), torch.randn(1, 16, 8)
    block.one.weight[5] = 0.0  # and so is what the last layer sees there
    assert told(find_rescalings(block, lambda: block(x))) == {("start", ("one", "two"))}


def test_what_must_stay_is_left_out():
    torch.manual_seed(0)
    block, x = Invented(NOTHING), torch.randn(1, 16, 8)
    fixed = {("last", "columns")}
    assert told(find_rescalings(block, lambda: block(x), lambda *what: what in fixed)) == {("start", ("one", "two"))}
    fixed = {("start", "rows"), ("one", "rows")}
    assert told(find_rescalings(block, lambda: block(x), lambda *what: what in fixed)) == {("two", ("last",))}


def test_scaling_by_hand():
    block = Invented(NOTHING)
    gain, column = block.start.weight.clone(), block.one.weight[:, 3].clone()
    exponents = torch.zeros(8)
    exponents[3] = 2.0
    rescale(block, Rescaling("start", {"one": torch.arange(8), "two": torch.arange(8)}), exponents)
    assert block.start.weight[3] == gain[3] / 4
    assert torch.equal(block.start.weight[:3], gain[:3])
    assert torch.equal(block.one.weight[:, 3], column * 4)
