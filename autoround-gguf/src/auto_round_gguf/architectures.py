# SPDX-License-Identifier: Apache-2.0
"""The architectures whose models can be written, as data: what llama.cpp calls them and what it wants to know.

A new one is an entry here, if its tensors only need what `tensors.CHANGES` can do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

__all__ = ["ARCHITECTURES", "Architecture"]


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp.

    Attributes:
        name: its name in files.
        changes: what happens to tensors on the way, by the last part of their GGUF names, with `.weight` where biases
            stay as they are; see `tensors.CHANGES`.
        metadata: groups of keys to write; see `metadata.GROUPS`.
        dropped: ends of names in checkpoints that are no weights.
        model_class: the model class of transformers.
        activations: what llama.cpp computes between the halves of the feed-forward.
        pattern: period of the blocks with full attention among those with a window, where llama.cpp fixes it.
        unrotated: period of the blocks without rotary positions, where it fixes that.
        normalises: whether it divides the weights of the experts that are used by their sum.
        absent: fields of a config that ask for what files of this kind have no place for.
    """

    name: str
    model_class: str
    changes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    metadata: tuple[str, ...] = ("rms", "rope")
    dropped: tuple[str, ...] = ("rotary_emb.inv_freq",)
    activations: tuple[str, ...] = ("silu", "swish")
    pattern: int = 0
    unrotated: int = 0
    normalises: bool = True
    absent: tuple[str, ...] = ()


_ROPE_PAIRS = {"attn_q": "interleave", "attn_k": "interleave_kv"}
_NORMS = ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm", "output_norm", "attn_q_norm", "attn_k_norm")
_ONE_MORE = {f"{norm}.weight": "add_one" for norm in _NORMS}

_LLAMA_KEYS = ("rms", "rope", "rope_size", "head_size")
_HEAD_KEYS = ("rms", "rope", "head_size")
_GEMMA_KEYS = (*_HEAD_KEYS, "window")
_TANH = ("gelu_pytorch_tanh",)
_NORM_KEYS = ("layer_norm", "rope")
_MASKS = (".attn.bias", ".attn.masked_bias")

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", "LlamaForCausalLM", _ROPE_PAIRS, _LLAMA_KEYS),
    "mistral": Architecture("llama", "MistralForCausalLM", _ROPE_PAIRS, _LLAMA_KEYS),
    "mixtral": Architecture("llama", "MixtralForCausalLM", _ROPE_PAIRS, (*_LLAMA_KEYS, "experts")),
    "smollm3": Architecture("smollm3", "SmolLM3ForCausalLM", _ROPE_PAIRS, _LLAMA_KEYS, unrotated=4),
    "granite": Architecture("granite", "GraniteForCausalLM", _ROPE_PAIRS, (*_LLAMA_KEYS, "multipliers")),
    "arcee": Architecture("arcee", "ArceeForCausalLM", _ROPE_PAIRS, _LLAMA_KEYS, activations=("relu2",)),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", metadata=_HEAD_KEYS),
    "qwen3_moe": Architecture("qwen3moe", "Qwen3MoeForCausalLM", metadata=(*_HEAD_KEYS, "experts")),
    "qwen2_moe": Architecture(
        "qwen2moe", "Qwen2MoeForCausalLM", metadata=("rms", "rope", "experts", "shared_expert"), normalises=False
    ),
    "seed_oss": Architecture("seed_oss", "SeedOssForCausalLM", metadata=_HEAD_KEYS),
    "ernie4_5": Architecture("ernie4_5", "Ernie4_5ForCausalLM", metadata=_HEAD_KEYS),
    "olmo": Architecture("olmo", "OlmoForCausalLM", _ROPE_PAIRS, ("plain_norm", "rope")),
    "olmo2": Architecture("olmo2", "Olmo2ForCausalLM"),
    "glm4": Architecture("glm4", "Glm4ForCausalLM", metadata=("rms", "rope", "rope_size")),
    "gemma": Architecture(*("gemma", "GemmaForCausalLM", _ONE_MORE, _HEAD_KEYS), activations=(*_TANH, "gelu")),
    "gemma2": Architecture(
        *("gemma2", "Gemma2ForCausalLM", _ONE_MORE, (*_GEMMA_KEYS, "softcaps")), activations=_TANH, pattern=2
    ),
    "gemma3_text": Architecture("gemma3", "Gemma3ForCausalLM", _ONE_MORE, _GEMMA_KEYS, activations=_TANH, pattern=6),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", metadata=("rms", "rope", "rope_size", "window")),
    "nemotron": Architecture(
        *("nemotron", "NemotronForCausalLM", _ONE_MORE, (*_NORM_KEYS, "rope_size")), activations=("relu2",)
    ),
    "phi": Architecture(
        *("phi2", "PhiForCausalLM"),
        metadata=(*_NORM_KEYS, "rope_size"),
        activations=("gelu_new", *_TANH),
        absent=("qk_layernorm",),
    ),
    "starcoder2": Architecture("starcoder2", "Starcoder2ForCausalLM", metadata=_NORM_KEYS, activations=_TANH),
    "stablelm": Architecture(
        "stablelm",
        "StableLmForCausalLM",
        metadata=(*_NORM_KEYS, "rope_size", "parallel"),
        absent=("qk_layernorm",),
    ),
    "cohere": Architecture("command-r", "CohereForCausalLM", metadata=(*_NORM_KEYS, "logit_scale")),
    "cohere2": Architecture(
        *("cohere2", "Cohere2ForCausalLM"),
        metadata=(*_NORM_KEYS, "rope_size", "window", "logit_scale"),
        pattern=4,
    ),
    "gpt2": Architecture(
        "gpt2",
        "GPT2LMHeadModel",
        metadata=("layer_norm",),
        dropped=_MASKS,
        activations=("gelu_new", "gelu", "gelu_pytorch_tanh"),
    ),
    "gpt_bigcode": Architecture(
        *("starcoder", "GPTBigCodeForCausalLM"),
        metadata=("layer_norm",),
        dropped=_MASKS,
        activations=("gelu_pytorch_tanh", "gelu_new", "gelu"),
    ),
    "gpt_neox": Architecture(
        "gptneox",
        "GPTNeoXForCausalLM",
        {"attn_qkv": "split_heads"},
        (*_NORM_KEYS, "rope_size", "parallel"),
        dropped=("attention.bias", "attention.masked_bias", "rotary_emb.inv_freq"),
        activations=("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"),
    ),
}
"""By `model_type` of a config."""
