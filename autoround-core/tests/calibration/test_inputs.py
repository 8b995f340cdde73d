# SPDX-License-Identifier: Apache-2.0
"""Block inputs recorded without running the blocks are what the blocks are really called with."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    Qwen3Config,
    RwkvConfig,
)

from auto_round.calibration import observer as observer_module
from auto_round.calibration.inputs import capture_block_inputs
from auto_round.calibration.observer import InputObserver
from auto_round.errors import ModelError
from auto_round.model.structure import find_structure

WIDE = {"hidden_size": 16, "num_attention_heads": 2, "vocab_size": 60, "num_hidden_layers": 3}
GROUPED = {**WIDE, "num_key_value_heads": 1, "intermediate_size": 24}
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
CONFIGS = {
    "llama": LlamaConfig(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=8),
    # Sliding and full attention alternate, so blocks are called with different masks and rotary tables.
    "gemma3": Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=4, layer_types=KINDS),
    "gpt2": GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=60),
    "gpt_neox": GPTNeoXConfig(**WIDE, intermediate_size=32),
    "opt": OPTConfig(**{**WIDE, "ffn_dim": 32, "word_embed_proj_dim": 16, "do_layer_norm_before": True}),
    "falcon": FalconConfig(**WIDE),
    # Its blocks return three things.
    "rwkv": RwkvConfig(hidden_size=16, vocab_size=60, num_hidden_layers=3, context_length=64, rescale_every=0),
}  # fmt: skip


def make(kind):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[kind]).eval().requires_grad_(False)


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_chaining_the_recorded_calls_is_running_the_model(kind):
    model = make(kind)
    structure = find_structure(model)
    ids = torch.randint(0, 60, (5, 9), generator=torch.Generator().manual_seed(0))
    recorded = capture_block_inputs(model, structure.block_list, ids, batch_size=2)
    assert set(recorded.calls) == {1, 2}

    ends = []
    last = model.get_submodule(structure.blocks[-1])
    handle = last.register_forward_hook(lambda _m, _a, out: ends.append(out[0] if isinstance(out, tuple) else out))
    model(input_ids=ids, use_cache=False)
    handle.remove()

    chained = []
    for part in recorded.hidden.split(2):
        hidden = part
        for name, call in zip(structure.blocks, recorded.calls[len(part)], strict=True):
            hidden = call.run(model.get_submodule(name), hidden)
        chained.append(hidden)
    # Other batch sizes sum in another order, so the last bits may differ.
    torch.testing.assert_close(torch.cat(chained), ends[0], rtol=1e-5, atol=1e-5)


def test_the_blocks_are_back_afterwards():
    model = make("llama")
    before = list(model.model.layers)
    names = list(model.state_dict())
    capture_block_inputs(model, "model.layers", torch.ones(2, 4, dtype=torch.int64), batch_size=2)
    assert all(a is b for a, b in zip(before, model.model.layers, strict=True))
    assert list(model.state_dict()) == names


def test_a_model_that_skips_blocks_is_refused():
    model = make("llama")
    model.config.num_hidden_layers = 2
    with pytest.raises(ModelError, match="ran 2 of its 3 blocks"):
        capture_block_inputs(model, "model.layers", torch.ones(2, 4, dtype=torch.int64), batch_size=2)


@torch.no_grad()
def test_what_layers_are_fed_alike_is_squared_once(monkeypatch):
    monkeypatch.setattr(observer_module, "PIECE", 12)  # two tokens at a time
    linears = {name: torch.nn.Linear(6, 3) for name in ("q", "k", "other", "changed")}
    watched = InputObserver(linears, set(linears), ())
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    with watched.watching():
        for name in ("q", "k"):
            linears[name](x)
        linears["other"](other)
        linears["changed"](other.mul_(2.0))
    assert watched.sums["k"] is watched.sums["q"]
    assert watched.sums["other"] is not watched.sums["q"]
    expected = x.double().square().sum((0, 1))
    for name, factor in (("q", 1.0), ("other", 1.0), ("changed", 4.0)):
        torch.testing.assert_close(watched.sums[name].double(), factor * expected, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_importance_is_the_sum_of_squares_of_the_tokens_that_count():
    linear = torch.nn.Linear(6, 3)
    observer = InputObserver({"it": linear}, {"it"}, {"it"})
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=torch.bool)
    with observer.watching():
        observer.mask = mask
        linear(x)
        observer.mask = None
        linear(x[:1])
    linear(x * 100)  # nobody watches any more
    expected = x[mask].double().square().sum(0) + x[0].double().square().sum(0)
    assert observer.highs["it"] == x[mask].max().clamp(min=0)
    assert observer.lows["it"] == x[mask].min().clamp(max=0)
    torch.testing.assert_close(observer.sums["it"].double(), expected, rtol=1e-6, atol=1e-6)  # float32 sums
