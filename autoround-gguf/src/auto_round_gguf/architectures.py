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
        changes: what happens to tensors on the way, by the last part of their GGUF names; see `tensors.CHANGES`.
        metadata: groups of keys to write; see `metadata.GROUPS`.
        dropped: ends of names in checkpoints that are no weights.
        model_class: the model class of transformers.
        activations: what llama.cpp computes between the halves of the feed-forward.
        pattern: period of the blocks with full attention among those with a window, where llama.cpp fixes it.
    """

    name: str
    model_class: str
    changes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    metadata: tuple[str, ...] = ("rms", "rope")
    dropped: tuple[str, ...] = ("rotary_emb.inv_freq",)
    activations: tuple[str, ...] = ("silu", "swish")
    pattern: int = 0


_ROPE_PAIRS = {"attn_q": "interleave", "attn_k": "interleave_kv"}
_NORMS = ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm", "output_norm", "attn_q_norm", "attn_k_norm")
_ONE_MORE = dict.fromkeys(_NORMS, "add_one")

_LLAMA_KEYS = ("rms", "rope", "rope_size", "head_size")
_GEMMA_KEYS = ("rms", "rope", "head_size", "window")
_TANH = ("gelu_pytorch_tanh",)

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", "LlamaForCausalLM", _ROPE_PAIRS, _LLAMA_KEYS),
    "mistral": Architecture("llama", "MistralForCausalLM", _ROPE_PAIRS, _LLAMA_KEYS),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", metadata=("rms", "rope", "head_size")),
    "qwen3_moe": Architecture("qwen3moe", "Qwen3MoeForCausalLM", metadata=("rms", "rope", "head_size", "experts")),
    "gemma2": Architecture(
        *("gemma2", "Gemma2ForCausalLM", _ONE_MORE, (*_GEMMA_KEYS, "softcaps")), activations=_TANH, pattern=2
    ),
    "gemma3_text": Architecture("gemma3", "Gemma3ForCausalLM", _ONE_MORE, _GEMMA_KEYS, activations=_TANH, pattern=6),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", metadata=("rms", "rope", "rope_size", "window")),
    "gpt2": Architecture(
        "gpt2",
        "GPT2LMHeadModel",
        metadata=("layer_norm",),
        dropped=(".attn.bias", ".attn.masked_bias"),
        activations=("gelu_new", "gelu", "gelu_pytorch_tanh"),
    ),
    "gpt_neox": Architecture(
        "gptneox",
        "GPTNeoXForCausalLM",
        {"attn_qkv": "split_heads"},
        ("layer_norm", "rope", "rope_size", "parallel"),
        dropped=("attention.bias", "attention.masked_bias", "rotary_emb.inv_freq"),
        activations=("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"),
    ),
}
"""By `model_type` of a config."""
