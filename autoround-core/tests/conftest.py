# SPDX-License-Identifier: Apache-2.0
"""What core's tests share: a data type no family has, a registry that holds it alone, small models."""

from typing import ClassVar

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    GraniteMoeConfig,
    LlamaConfig,
    MixtralConfig,
    NemotronHConfig,
    PhimoeConfig,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from auto_round import Codes, DataType, QuantizationScheme, hookimpl
from auto_round.data_type.grouping import (
    group_count,
    groups_stack,
    reshape_pad_tensor_by_group_size,
    revert_tensor_by_pad,
)
from auto_round.data_type.rounding import round_ste
from auto_round.export import OutputFormat
from auto_round.plugins import default_registry
from auto_round.testing.fixtures import isolated_registry

__all__ = ["isolated_registry"]

collect_ignore = ["vendor"]  # a package of its own, which `nox -s vendor` installs and tests

WORDS = [f"w{i}" for i in range(250)]


class Steps(DataType):
    """Symmetric steps of one scale per group: enough of a data type to go through every room."""

    name = "steps"
    summary = "steps of one scale per group"
    tuned: ClassVar = {"v": None, "max_scale": (0.0, 1.0)}
    encodes = True
    searches = True

    def _codes(self, tensor, bits, group_size, v, max_scale, scale_dtype, init_scale):
        groups, shape, pad = reshape_pad_tensor_by_group_size(tensor.float(), group_size)
        top = 2 ** (bits - 1) - 1
        scale = groups.abs().amax(-1, keepdim=True) / top if init_scale is None else init_scale
        if isinstance(max_scale, torch.Tensor):
            scale = scale * max_scale.unsqueeze(-1)
        scale = scale.clamp(1e-5, torch.finfo(scale_dtype).max).to(scale_dtype)
        codes = round_ste(groups / scale.float() + v).clamp(-top, top)
        return codes, scale, shape, pad

    def quant_tensor(
        self, tensor, bits=4, group_size=32, v=0.0, max_scale=1.0, scale_dtype=torch.float16, init_scale=None
    ):
        codes, scale, shape, pad = self._codes(tensor, bits, group_size, v, max_scale, scale_dtype, init_scale)
        return revert_tensor_by_pad(codes * scale.float(), shape, pad).to(tensor.dtype), scale, None

    def search(self, weight, scheme, *, imatrix, scale_dtype):
        groups, _, _ = reshape_pad_tensor_by_group_size(weight.float(), scheme.group_size)
        return {"init_scale": groups.abs().amax(-1, keepdim=True) / (2 ** (scheme.bits - 1) - 1) * 0.9}

    def statistics(self, scheme):
        return frozenset({"imatrix"})

    def stacks(self, scheme, shape):
        return groups_stack(shape, scheme.group_size)

    def freeze(self, low, high, scheme):
        return {"init_scale": torch.maximum(-low, high) / (2 ** (scheme.act_bits - 1) - 1)}

    def supports(self, scheme, shape):
        return "rows of fewer than 8 weights" if shape[1] < 8 else None

    def encode(self, weight, scheme, v=0.0, max_scale=1.0, scale_dtype=torch.float16, init_scale=None):
        codes, scale, shape, pad = self._codes(
            weight, scheme.bits, scheme.group_size, v, max_scale, scale_dtype, init_scale
        )
        per_row = group_count(tuple(weight.shape), scheme.group_size)[0] // weight.shape[0]
        tensors = {
            "codes": revert_tensor_by_pad(codes, shape, pad).to(torch.int8),
            "scale": scale.reshape(weight.shape[0], per_row),
        }
        return Codes(self.name, scheme, tuple(weight.shape), weight.dtype, tensors)

    def decode(self, codes):
        q, shape, pad = reshape_pad_tensor_by_group_size(codes.tensors["codes"].float(), codes.scheme.group_size)
        weight = q * codes.tensors["scale"].reshape(-1, 1).float()
        return revert_tensor_by_pad(weight, shape, pad).to(codes.dtype)

    def bits_per_weight(self, scheme, shape):
        return scheme.bits + 16 * group_count(shape, scheme.group_size)[0] / (shape[0] * shape[1])


class StepsPlugin:
    """A plugin object with the two hooks a small data type needs."""

    @hookimpl
    def quant_tensor(self):
        return [Steps()]

    @hookimpl
    def schemes(self):
        return {"STEPS4": QuantizationScheme(bits=4, group_size=32, data_type="steps")}


class Picky(OutputFormat):
    """Takes narrow layers alone, and scales in float32."""

    name = "picky"

    def refuses(self, layer):
        return "it is too wide." if layer.shape[0] > 40 else None

    def scale_dtype(self, layer):
        return torch.float32

    def start(self, plan, model, directory):
        raise NotImplementedError


@pytest.fixture
def steps_plugin():
    """The plugin by itself."""
    return StepsPlugin()


@pytest.fixture
def installed(steps_plugin):
    """The data type in the process-wide registry, which is the one transformers gets to."""
    registry = default_registry()
    registry.register(steps_plugin, name="steps")
    yield registry
    registry.unregister("steps")


@pytest.fixture
def registry(isolated_registry):
    """Core and the data type `steps`, nothing that is installed."""
    isolated_registry.register(StepsPlugin(), name="steps")
    return isolated_registry


def tiny_config(**changes):
    """A Llama of two blocks that takes milliseconds."""
    values = {
        "vocab_size": len(WORDS) + 6,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return LlamaConfig(**{**values, **changes})


def make_model(config=None, seed=0):
    """A model with random weights large enough that rounding them shows."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config or tiny_config(), dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.08)
    return model.eval()


def make_tokenizer():
    """One token per word."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, **{word: i + 4 for i, word in enumerate(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture
def model_dir(tmp_path):
    """A model directory as people have them."""
    directory = tmp_path / "model"
    make_model().save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def gated():
    """A model with a gate of one output beside each multilayer perceptron, and a layer of 8 in linear attention."""
    config = Qwen3NextConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, moe_intermediate_size=64, num_hidden_layers=4,
        shared_expert_intermediate_size=64, num_attention_heads=2, num_key_value_heads=2, head_dim=32, num_experts=4,
        num_experts_per_tok=1, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=32,
        linear_value_head_dim=32,
    )  # fmt: skip
    return make_model(config)


@pytest.fixture
def tokens():
    """Eight calibration samples of sixteen tokens."""
    return torch.randint(4, 250, (8, 16), generator=torch.Generator().manual_seed(1))


SMALL = {
    "vocab_size": 256, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "dtype": "bfloat16",
}  # fmt: skip
EXPERTS = {**SMALL, "num_hidden_layers": 2, "num_experts_per_tok": 2, "tie_word_embeddings": False}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32}
GPT2 = {"vocab_size": 256, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "dtype": "bfloat16"}
DEEPSEEK = {
    "moe_intermediate_size": 16, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 2, "topk_group": 1,
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "first_k_dense_replace": 1, "num_key_value_heads": 4,
}  # fmt: skip
HYBRID = {
    **{name: EXPERTS[name] for name in ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads")},
    "intermediate_size": 48, "head_dim": 16, "layers_block_type": ["attention", "mlp"], "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 64,
}  # fmt: skip
ARCHITECTURES = {
    "llama": LlamaConfig(**SMALL, tie_word_embeddings=False),
    "tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "gpt2": GPT2Config(
        **GPT2, pad_token_id=0, bos_token_id=1, eos_token_id=2
    ),  # linear layers kept the other way round
    "gemma3": Gemma3TextConfig(
        **SMALL, head_dim=8, sliding_window=8, layer_types=["sliding_attention"] * 2 + ["full_attention"]
    ),
    "qwen3_moe": Qwen3MoeConfig(**EXPERTS, head_dim=8, moe_intermediate_size=16, num_experts=4),  # stored one by one
    "mixtral": MixtralConfig(**EXPERTS, num_local_experts=4),  # stored under other names
    "gpt_oss": GptOssConfig(**EXPERTS, head_dim=8, num_local_experts=4, rope_parameters=YARN),  # stored in one tensor
    "phimoe": PhimoeConfig(**EXPERTS, num_local_experts=4),  # routers under other names, too
    "granitemoe": GraniteMoeConfig(**EXPERTS, num_local_experts=4),  # in one tensor of another name
    "deepseek": DeepseekV3Config(**{**EXPERTS, **DEEPSEEK}),  # has a stored buffer, kept in float32
    "nemotron_h": NemotronHConfig(**HYBRID),  # all blocks under other names
}
"""Small models of every way in which weights lie in files."""


@pytest.fixture(scope="session")
def stored(tmp_path_factory):
    """Directory of a small model of one of these architectures; made once, to be read only."""
    made = {}

    def of(architecture, dtype=torch.bfloat16, shards="10GB"):
        key = architecture, dtype, shards
        if key not in made:
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture], dtype=dtype)
            for tensor in [*model.parameters(), *(b for n, b in model.named_buffers() if n.endswith("_bias"))]:
                torch.nn.init.normal_(tensor, 0.01, 0.2)
            made[key] = tmp_path_factory.mktemp(architecture) / "model"
            model.save_pretrained(made[key], max_shard_size=shards)
        return made[key]

    return of
