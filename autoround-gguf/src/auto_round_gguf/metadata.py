# SPDX-License-Identifier: Apache-2.0
"""What a file says of a model besides its tensors: hyperparameters, in the keys that llama.cpp reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import gguf
import torch

from auto_round_gguf.architectures import Architecture

__all__ = ["computed_tensors", "kv_heads", "refusals", "write_hyperparameters"]

ROPE_TYPES = ("default", "linear", "yarn", "llama3", "longrope")


def write_hyperparameters(writer: gguf.GGUFWriter, architecture: Architecture, config: Any) -> None:
    """Everything llama.cpp asks for to build the graph. `config` is a transformers config."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    writer.add_feed_forward_length(inner)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(kv_heads(config))
    for group in architecture.metadata:
        GROUPS[group](writer, config)


LAYERS_OF_LARGEST = {"gemma2": 46, "gemma3": 62}
"""Of the models of 27 billion weights, whose scores llama.cpp scales in another way."""

LOCAL_ROPE_THETA = 10000.0

NORMS_FROM = {"command-r": 64}
"""Blocks from which on llama.cpp reads norms of queries and keys: only the largest models had them."""


def refusals(architecture: Architecture, config: Any) -> list[str]:
    """What llama.cpp would compute differently from the model, each a clause."""
    found = []
    kind = rope(config).get("rope_type", "default")
    if kind not in ROPE_TYPES or (kind == "longrope" and architecture.name != "phi3"):
        found.append(f"positions of type {kind} are not known to it")
    acts = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    acts = acts or getattr(config, "activation_function", None)
    if acts and acts not in architecture.activations:
        found.append(f"it computes {architecture.activations[0]} where the model has {acts}")
    if architecture.pattern:
        kinds = getattr(config, "layer_types", None) or []
        wanted = [
            "full_attention" if (i + 1) % architecture.pattern == 0 else "sliding_attention" for i in range(len(kinds))
        ]
        if list(kinds) != wanted:
            found.append(f"it takes every {architecture.pattern}th block to see everything, and here it is others")
    if architecture.unrotated:
        rotates = list(getattr(config, "no_rope_layers", None) or [])  # 1 where positions are rotated
        if rotates != [int((i + 1) % architecture.unrotated != 0) for i in range(len(rotates))]:
            found.append(f"it rotates no positions in every {architecture.unrotated}th block, and here it is others")
    found += [f"it has no place for what {field}=True adds" for field in architecture.absent if getattr(config, field)]
    return [*found, *_attention_refusals(architecture, config), *_expert_refusals(architecture, config)]


def _expert_refusals(architecture: Architecture, config: Any) -> list[str]:
    found: list[str] = []
    if "experts" not in architecture.metadata:
        return found
    if getattr(config, "decoder_sparse_step", 1) != 1 or getattr(config, "mlp_only_layers", None):
        found.append("it takes every block to have experts")
    if getattr(config, "norm_topk_prob", True) is not architecture.normalises:
        does, other = ("normalises", "does not") if architecture.normalises else ("does not normalise", "does")
        found.append(f"it {does} the weights of the experts that are used, and the model {other}")
    return found


def _attention_refusals(architecture: Architecture, config: Any) -> list[str]:
    """What is set in configs and has no key in a file: llama.cpp goes by the size of the model."""
    found = []
    scalar = getattr(config, "query_pre_attn_scalar", None)
    if scalar is not None:
        largest = LAYERS_OF_LARGEST.get(architecture.name) == config.num_hidden_layers
        divisor = config.hidden_size / config.num_attention_heads if largest else head_size(config)
        if scalar != divisor:
            found.append(f"it divides scores by the root of {divisor:g}, and the model by that of {scalar:g}")
    least = NORMS_FROM.get(architecture.name, 0)
    if getattr(config, "use_qk_norm", False) and config.num_hidden_layers < least:
        found.append(f"it reads norms of queries and keys only in models of {least} blocks or more")
    local = (getattr(config, "rope_parameters", None) or {}).get("sliding_attention")
    theta = LOCAL_ROPE_THETA if local is None else local.get("rope_theta", LOCAL_ROPE_THETA)
    if theta != LOCAL_ROPE_THETA:
        found.append(f"its blocks with windows have rope theta {LOCAL_ROPE_THETA:g}, and the model's {theta:g}")
    return found


def computed_tensors(architecture: Architecture, config: Any) -> Mapping[str, torch.Tensor]:
    """Tensors that checkpoints do not hold: divisors of the frequencies of rotary positions, float32 [pairs]."""
    parameters = rope(config)
    kind = parameters.get("rope_type", "default")
    if kind == "llama3":
        return {"rope_freqs.weight": _llama3_divisors(parameters, rotated(config))}
    if kind == "longrope":
        return {
            f"rope_factors_{which}.weight": torch.tensor(parameters[f"{which}_factor"], dtype=torch.float32)
            for which in ("long", "short")
        }
    return {}


def kv_heads(config: Any) -> int:
    """Heads of keys and values."""
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def head_size(config: Any) -> int:
    """Features of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rope(config: Any) -> dict[str, Any]:
    """The parameters of rotary positions; of the blocks that see everything, where there are two kinds."""
    parameters = dict(getattr(config, "rope_parameters", None) or {})
    return dict(parameters.get("full_attention", parameters))


def rotated(config: Any) -> int:
    """Features of a head that are rotated."""
    part = rope(config).get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    return int(head_size(config) * part)


def _llama3_divisors(parameters: Mapping[str, Any], size: int) -> torch.Tensor:
    """Long wavelengths are stretched by a factor, short ones are not, with a ramp between (Llama 3.1)."""
    frequencies = parameters["rope_theta"] ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    wavelengths = 2 * math.pi / frequencies
    before = parameters["original_max_position_embeddings"]
    low, high, factor = parameters["low_freq_factor"], parameters["high_freq_factor"], parameters["factor"]
    ramp = ((before / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - ramp) / factor + ramp)).float()


def _write_rope(writer: gguf.GGUFWriter, config: Any) -> None:
    parameters = rope(config)
    writer.add_rope_freq_base(float(parameters.get("rope_theta", 10000.0)))
    kind = parameters.get("rope_type", "default")
    before = parameters.get("original_max_position_embeddings") or getattr(
        config, "original_max_position_embeddings", None
    )
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(parameters["factor"]))
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(parameters["factor"]))
        writer.add_rope_scaling_orig_ctx_len(before or config.max_position_embeddings)
    elif kind == "longrope":
        before = before or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(before)
        stretch = config.max_position_embeddings / before
        attention = math.sqrt(1 + math.log(stretch) / math.log(before)) if stretch > 1 else 1.0
        writer.add_rope_scaling_attn_factors(parameters.get("attention_factor") or attention)


def _write_head_size(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))


def _write_layer_norm(writer: gguf.GGUFWriter, config: Any) -> None:
    names = ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps")
    writer.add_layer_norm_eps(next(getattr(config, name) for name in names if hasattr(config, name)))


def _write_window(writer: gguf.GGUFWriter, config: Any) -> None:
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)


def _write_softcaps(writer: gguf.GGUFWriter, config: Any) -> None:
    if config.attn_logit_softcapping:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _write_experts(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if hasattr(config, "moe_intermediate_size"):  # else that of all layers
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _write_multipliers(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def _write_plain_norm(writer: gguf.GGUFWriter, config: Any) -> None:
    """OLMo's norms have neither weights nor an epsilon of their own; what they see may be cut off."""
    writer.add_layer_norm_eps(1e-5)
    if getattr(config, "clip_qkv", None):
        writer.add_clamp_kqv(float(config.clip_qkv))


GROUPS: dict[str, Callable[[gguf.GGUFWriter, Any], None]] = {
    "rms": lambda writer, config: writer.add_layer_norm_rms_eps(config.rms_norm_eps),
    "layer_norm": _write_layer_norm,
    "rope": _write_rope,
    "rope_size": lambda writer, config: writer.add_rope_dimension_count(rotated(config)),
    "head_size": _write_head_size,
    "window": _write_window,
    "softcaps": _write_softcaps,
    "experts": _write_experts,
    "shared_expert": lambda writer, config: writer.add_expert_shared_feed_forward_length(
        config.shared_expert_intermediate_size
    ),
    "plain_norm": _write_plain_norm,
    "multipliers": _write_multipliers,
    "logit_scale": lambda writer, config: writer.add_logit_scale(config.logit_scale),
    "parallel": lambda writer, config: writer.add_parallel_residual(config.use_parallel_residual),
}
"""Keys that belong together, by the names architectures use for them."""
