# SPDX-License-Identifier: Apache-2.0
"""Files of every architecture, run by llama.cpp: most tensors as they are, so that only their order is at stake."""

import gguf
import pytest
import torch
import transformers as tf

from auto_round import AutoRound
from auto_round.errors import PlanError, UnknownOptionError
from auto_round_gguf.settings import shard_bytes

pytestmark = pytest.mark.slow

VOCABULARY = 264
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 2, "pad_token_id": 0}
EIGHT_BLOCKS = {**GROUPED, "num_hidden_layers": 8}
SHORT = {"rope_theta": 1000.0, "original_max_position_embeddings": 64}

MODELS = {
    "llama": lambda: tf.LlamaConfig(**GROUPED),
    "llama with biases": lambda: tf.LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True),
    "llama 3.1": lambda: tf.LlamaConfig(
        **GROUPED,
        rope_parameters={
            **SHORT,
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    ),
    "llama, linear": lambda: tf.LlamaConfig(
        **GROUPED, rope_parameters={"rope_theta": 1000.0, "rope_type": "linear", "factor": 4.0}
    ),
    "mistral": lambda: tf.MistralConfig(**GROUPED, head_dim=64),
    "qwen2 moe": lambda: tf.Qwen2MoeConfig(
        **GROUPED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, shared_expert_intermediate_size=96
    ),
    "olmo": lambda: tf.OlmoConfig(**GROUPED),
    "olmo, clipped": lambda: tf.OlmoConfig(**GROUPED, clip_qkv=0.5),
    "starcoder": lambda: tf.GPTBigCodeConfig(
        vocab_size=VOCABULARY, n_embd=128, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2
    ),
    "mixtral": lambda: tf.MixtralConfig(**GROUPED, num_local_experts=4),
    "smollm 3": lambda: tf.SmolLM3Config(**EIGHT_BLOCKS),
    "granite": lambda: tf.GraniteConfig(
        **GROUPED, attention_multiplier=0.1, embedding_multiplier=3.0, residual_multiplier=0.7, logits_scaling=2.0
    ),
    "arcee": lambda: tf.ArceeConfig(**GROUPED),
    "seed-oss": lambda: tf.SeedOssConfig(**GROUPED, head_dim=64),
    "ernie 4.5": lambda: tf.Ernie4_5Config(**GROUPED, head_dim=64),
    "olmo 2": lambda: tf.Olmo2Config(**GROUPED),
    "glm 4": lambda: tf.Glm4Config(**GROUPED, head_dim=32),
    "gemma": lambda: tf.GemmaConfig(**GROUPED, head_dim=64),
    "nemotron": lambda: tf.NemotronConfig(**GROUPED),
    "phi": lambda: tf.PhiConfig(**SIZES),
    "starcoder 2": lambda: tf.Starcoder2Config(**GROUPED),
    "stablelm": lambda: tf.StableLmConfig(**GROUPED, use_qkv_bias=True),
    "stablelm, parallel": lambda: tf.StableLmConfig(**GROUPED, use_parallel_residual=True),
    "cohere": lambda: tf.CohereConfig(**GROUPED, logit_scale=0.2),
    "cohere, norms": lambda: tf.CohereConfig(**{**GROUPED, "num_hidden_layers": 64}, use_qk_norm=True),
    "cohere 2": lambda: tf.Cohere2Config(**EIGHT_BLOCKS, sliding_window=8),
    "qwen2": lambda: tf.Qwen2Config(**GROUPED),
    "qwen2, yarn": lambda: tf.Qwen2Config(**GROUPED, rope_parameters={**SHORT, "rope_type": "yarn", "factor": 4.0}),
    "qwen3": lambda: tf.Qwen3Config(**GROUPED, head_dim=64),
    "qwen3 moe": lambda: tf.Qwen3MoeConfig(
        **GROUPED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, norm_topk_prob=True
    ),
    "gemma 2": lambda: tf.Gemma2Config(**GROUPED, head_dim=32, query_pre_attn_scalar=32, sliding_window=8),
    "gemma 3": lambda: tf.Gemma3TextConfig(
        **{**GROUPED, "num_hidden_layers": 7}, head_dim=32, query_pre_attn_scalar=32, sliding_window=8
    ),
    "phi 3": lambda: tf.Phi3Config(**GROUPED),
    "phi 3, long": lambda: tf.Phi3Config(
        **GROUPED,
        rope_parameters={
            **SHORT,
            "rope_type": "longrope",
            "short_factor": [1.0 + 0.05 * i for i in range(16)],
            "long_factor": [1.0 + 0.5 * i for i in range(16)],
        },
        original_max_position_embeddings=64,
    ),
    "gpt-2": lambda: tf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=128, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2
    ),
    "gpt-neox": lambda: tf.GPTNeoXConfig(**SIZES),
}
KEEP_MOST = {r"re:^(?!.*(layers|h)\.1\..*(o_proj|c_proj|dense)).*$": {"bits": 16}}
TIED = ("gemma 2", "gemma 3", "gpt-2")


@pytest.fixture
def tokens():
    return torch.randint(4, VOCABULARY, (4, 32), generator=torch.Generator().manual_seed(3))


def make(config):
    torch.manual_seed(1)
    model = tf.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                embedding = any(part in name for part in ("embed", "wte"))
                parameter.normal_(0, 0.15 if embedding else 1.5 / parameter.shape[-1] ** 0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture
def tokenizer(byte_level):
    made = byte_level()
    made.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})  # llama.cpp looks for it in any phi 3
    return made


@pytest.fixture
def write(tokenizer, tokens):
    def written(model, directory, scheme="GGUF:Q8_0", **options):
        job = AutoRound(model, tokenizer, scheme=scheme, dataset=tokens, nsamples=4, iters=0, verbose=False, **options)
        job.quantize_and_save(directory, format="gguf")
        (path,) = directory.glob("*.gguf")
        return path

    return written


def stored(path):
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_llama_cpp_computes_the_same(tmp_path, write, llama_cpp, name):
    model = make(MODELS[name]())
    path = write(model, tmp_path / "out", layer_config=KEEP_MOST)
    tensors = stored(path)
    plain = [t.tensor_type.name for t in tensors.values() if t.tensor_type.name != "Q8_0"]
    assert set(plain) == {"F32"}
    embedding = tensors["token_embd.weight"]
    values = torch.from_numpy(gguf.quants.dequantize(embedding.data, embedding.tensor_type))
    model.get_input_embeddings().weight.copy_(values)
    # Beyond 64 positions, so that stretched rotary positions are at work.
    ids = torch.randint(4, 250, (100,), generator=torch.Generator().manual_seed(5))
    wanted = model(ids[None]).logits[0, -1].log_softmax(-1)
    got = llama_cpp(path).log_probabilities(ids.tolist(), VOCABULARY)
    distance = (got - wanted).abs().max().item() / wanted.std().item()
    # What is left is q8_0 activations (2^-8 of the largest of 32) in front of the one or two matrices that are
    # quantized: below 0.02 of the spread of the log probabilities where they are small ones. Rows in a wrong order
    # are as far off as another model, above 1. With tied embeddings the output is such a matrix too, and so are the
    # experts.
    assert distance < (0.15 if name in TIED or name == "qwen3 moe" else 0.03), distance


class Expert(torch.nn.Module):
    def __init__(self, gate_up, down):
        super().__init__()
        gate, up = gate_up.chunk(2)
        for name, weight in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
            linear = torch.nn.Linear(*weight.T.shape, bias=False)
            linear.weight.data = weight.clone()
            self.add_module(name, linear)

    def forward(self, x):
        return self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(torch.nn.ModuleList):
    """The experts of a block as linear layers of their own, each fed with the tokens that are sent to it."""

    def forward(self, hidden, index, weights):
        out = torch.zeros_like(hidden)
        for number, expert in enumerate(self):
            token, place = torch.where(index == number)
            if len(token):
                out.index_add_(0, token, expert(hidden[token]) * weights[token, place, None])
        return out


@pytest.fixture
def of_single_experts():
    model = make(MODELS["qwen3 moe"]())
    for layer in model.model.layers:
        fused = layer.mlp.experts
        layer.mlp.experts = Experts(map(Expert, fused.gate_up_proj.data, fused.down_proj.data))
    return model


@torch.no_grad()
def test_experts_that_are_layers_become_one_tensor(tmp_path, write, llama_cpp, of_single_experts):
    path = write(of_single_experts, tmp_path / "out")
    tensors = stored(path)
    experts = [layer.mlp.experts for layer in of_single_experts.model.layers]
    for role in ("gate", "up", "down"):
        found = tensors[f"blk.1.ffn_{role}_exps.weight"]
        assert found.tensor_type.name == "Q8_0"
        decoded = torch.from_numpy(gguf.quants.dequantize(found.data, found.tensor_type))
        for number, expert in enumerate(experts[1]):
            assert torch.equal(decoded[number], expert.get_submodule(f"{role}_proj").weight), (role, number)
    of_single_experts.model.embed_tokens.weight.copy_(
        torch.from_numpy(gguf.quants.dequantize(tensors["token_embd.weight"].data, gguf.GGMLQuantizationType.Q8_0))
    )
    of_single_experts.lm_head.weight.copy_(
        torch.from_numpy(gguf.quants.dequantize(tensors["output.weight"].data, gguf.GGMLQuantizationType.Q8_0))
    )
    ids = torch.randint(4, 250, (100,), generator=torch.Generator().manual_seed(5))
    wanted = of_single_experts(ids[None]).logits[0, -1].log_softmax(-1)
    got = llama_cpp(path).log_probabilities(ids.tolist(), VOCABULARY)
    # Every matrix is fed with 8-bit activations there; a wrong order of experts is as far off as another model.
    assert (got - wanted).abs().max() / wanted.std() < 0.3


@torch.no_grad()
def test_experts_that_a_model_keeps_fused_become_the_same_tensor(tmp_path, tokens, tokenizer, of_single_experts, write):
    """In memory as one parameter, in files one by one: both are the tensors that single layers gave."""
    fused = make(MODELS["qwen3 moe"]())
    fused.save_pretrained(tmp_path / "model")
    files = [write(of_single_experts, tmp_path / "single")]
    for number, model in enumerate((str(tmp_path / "model"), fused)):
        job = AutoRound(model, tokenizer, scheme="GGUF:Q8_0", dataset=tokens, nsamples=4, iters=0, verbose=False)
        job.quantize_and_save(tmp_path / str(number), format="gguf")
        files += (tmp_path / str(number)).iterdir()
    tensors = [stored(path) for path in files]
    for found in tensors[1:]:
        assert set(found) == set(tensors[0])
        for name, tensor in found.items():
            assert tensor.tensor_type == tensors[0][name].tensor_type, name
            assert (tensor.data == tensors[0][name].data).all(), name


def test_experts_of_a_block_have_one_type(tokens, of_single_experts):
    job = AutoRound(
        of_single_experts,
        scheme="GGUF:Q8_0",
        dataset=tokens,
        layer_config={"re:.*layers.1.*experts.2.up_proj": {"bits": 4}},
        verbose=False,
    )
    with pytest.raises(PlanError, match=r"layers.1.mlp.experts.up_proj are one tensor .* gguf_q4_0 and gguf_q8_0"):
        job.plan("gguf")


@torch.no_grad()
def test_an_output_that_is_asked_for_is_tuned_like_a_layer(tmp_path, write):
    """Another type for it, and none at all; untied from the embedding where it was tied."""
    tied = tf.LlamaConfig(**GROUPED, tie_word_embeddings=True)
    for config, change, wanted in (
        (MODELS["llama"](), {"bits": 5}, "Q5_0"),
        (MODELS["llama"](), {"bits": 16}, "F32"),
        (tied, {"bits": 5}, "Q5_0"),
    ):
        where = tmp_path / f"{config.tie_word_embeddings}{wanted}"
        tensors = stored(write(make(config), where, layer_config={"lm_head": change}))
        assert tensors["output.weight"].tensor_type.name == wanted
        assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"


def test_an_output_llama_cpp_has_no_place_for_is_refused_when_planned(tokens):
    job = AutoRound(
        make(MODELS["gemma 2"]()), scheme="GGUF:Q8_0", dataset=tokens, layer_config={"lm_head": {"bits": 5}}
    )
    with pytest.raises(PlanError, match="no place for layer lm_head in a model of architecture gemma2"):
        job.plan("gguf")


def test_an_architecture_that_is_not_covered_is_refused_when_planned(tokens):
    model = tf.AutoModelForCausalLM.from_config(tf.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=64, ffn_dim=96, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=64,
    ))  # fmt: skip
    job = AutoRound(model, scheme="GGUF:Q8_0", dataset=tokens, verbose=False)
    with pytest.raises(PlanError, match="cannot write OPTForCausalLM; it can write .*GPT2LMHeadModel, .*Qwen3Moe"):
        job.plan("gguf")


def test_data_types_of_others_are_refused_when_planned(tokens):
    model = make(MODELS["llama"]())
    job = AutoRound(model, scheme="GGUF:Q4_K_M", dataset=tokens, verbose=False)
    with pytest.raises(PlanError, match="holds scheme GGUF:Q8_0, not GGUF:Q4_K_M"):
        job.plan("gguf:q8_0")
    assert job.plan("gguf:q4_k_m").quantized


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lambda: tf.LlamaConfig(**GROUPED, hidden_act="relu"), "computes silu where the model has relu"),
        (
            lambda: tf.Gemma2Config(**GROUPED, head_dim=32, layer_types=["full_attention"] * 2),
            "every 2th block to see everything",
        ),
        (
            lambda: tf.Qwen3MoeConfig(
                **GROUPED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, norm_topk_prob=False
            ),
            "it normalises the weights",
        ),
        (
            lambda: tf.Qwen2MoeConfig(
                **GROUPED, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, norm_topk_prob=True
            ),
            "it does not normalise the weights of the experts that are used, and the model does",
        ),
        (
            lambda: tf.LlamaConfig(**GROUPED, rope_parameters={**SHORT, "rope_type": "dynamic", "factor": 2.0}),
            "positions of type dynamic",
        ),
        (
            lambda: tf.Gemma2Config(**GROUPED, head_dim=32, query_pre_attn_scalar=64),
            "divides scores by the root of 32, and the model by that of 64",
        ),
        (
            lambda: tf.SmolLM3Config(**{**GROUPED, "num_hidden_layers": 3}, no_rope_layers=[1, 0, 1]),
            "rotates no positions in every 4th block, and here it is others",
        ),
        (lambda: tf.CohereConfig(**GROUPED, use_qk_norm=True), "norms of queries and keys only in models of 64 blocks"),
        (lambda: tf.PhiConfig(**SIZES, qk_layernorm=True), "no place for what qk_layernorm=True adds"),
        (lambda: tf.StableLmConfig(**GROUPED, qk_layernorm=True), "no place for what qk_layernorm=True adds"),
        (
            lambda: tf.Gemma3TextConfig(
                **{**GROUPED, "num_hidden_layers": 6},
                head_dim=32,
                query_pre_attn_scalar=32,
                rope_parameters={
                    "sliding_attention": {**SHORT, "rope_theta": 500.0},
                    "full_attention": {**SHORT},
                },
            ),
            "have rope theta 10000, and the model's 500",
        ),
    ],
)
def test_what_llama_cpp_would_compute_differently_is_refused(tmp_path, write, config, reason):
    with pytest.raises(PlanError, match=reason):
        write(make(config()), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_a_file_says(tmp_path, write):
    path = write(make(MODELS["llama"]()), tmp_path / "out", scheme="GGUF:Q4_0")
    assert [p.name for p in path.parent.iterdir()] == ["LlamaForCausalLM-Q4_0.gguf"]
    fields = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["general.file_type"] == 2
    assert fields["general.quantization_version"] == 2
    assert fields["auto_round.scheme"] == "GGUF:Q4_0"
    assert fields["general.type"] == "model"
    assert fields["general.name"] == "LlamaForCausalLM"
    assert fields["general.size_label"].endswith("K")
    assert fields["general.quantized_by"].startswith("autoround-gguf ")
    assert len(fields["tokenizer.ggml.tokens"]) == fields["llama.vocab_size"] == VOCABULARY
    tensors = stored(path)
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    assert tensors["token_embd.weight"].tensor_type.name == "Q4_0"
    assert tensors["output.weight"].tensor_type.name == "Q8_0"  # rows of 128 are no whole super-blocks of q6_k


@torch.no_grad()
def test_files_can_be_cut(tmp_path, tokens, tokenizer, monkeypatch, llama_cpp):
    monkeypatch.setenv("AUTO_ROUND_GGUF_SHARD_SIZE", "100K")
    model = make(MODELS["llama"]())
    job = AutoRound(model, tokenizer, scheme="GGUF:Q8_0", dataset=tokens, nsamples=4, iters=0, verbose=False)
    job.quantize_and_save(tmp_path / "out", format="gguf")
    paths = sorted((tmp_path / "out").glob("*.gguf"))
    assert len(paths) > 2
    assert paths[0].name == f"LlamaForCausalLM-Q8_0-00001-of-{len(paths):05}.gguf"
    names = [name for path in paths for name in stored(path)]
    assert len(names) == len(set(names)) == 2 * 9 + 3
    monkeypatch.delenv("AUTO_ROUND_GGUF_SHARD_SIZE")
    whole = AutoRound(
        make(MODELS["llama"]()), tokenizer, scheme="GGUF:Q8_0", dataset=tokens, nsamples=4, iters=0, verbose=False
    )
    whole.quantize_and_save(tmp_path / "whole", format="gguf")
    ids = tokens[0].tolist()
    answers = [
        llama_cpp(path).log_probabilities(ids, VOCABULARY) for path in (paths[0], *(tmp_path / "whole").iterdir())
    ]
    assert torch.equal(*answers)


def test_a_size_that_is_none_is_refused(monkeypatch):
    monkeypatch.setenv("AUTO_ROUND_GGUF_SHARD_SIZE", "2.5 G")
    with pytest.raises(UnknownOptionError, match="is no size"):
        shard_bytes()
    monkeypatch.setenv("AUTO_ROUND_GGUF_SHARD_SIZE", "500M")
    assert shard_bytes() == 500_000_000
