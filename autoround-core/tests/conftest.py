# SPDX-License-Identifier: Apache-2.0
"""What core's tests share: a data type no family has, a registry that holds it alone, small models."""

from typing import ClassVar

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from auto_round import Codes, DataType, QuantizationScheme, hookimpl
from auto_round.data_type.grouping import group_count, reshape_pad_tensor_by_group_size, revert_tensor_by_pad
from auto_round.data_type.rounding import round_ste
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


@pytest.fixture
def steps_plugin():
    """The plugin by itself."""
    return StepsPlugin()


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
def tokens():
    """Eight calibration samples of sixteen tokens."""
    return torch.randint(4, 250, (8, 16), generator=torch.Generator().manual_seed(1))
