# SPDX-License-Identifier: Apache-2.0
"""What to say here instead of options that existing scripts have and this project has not."""

from __future__ import annotations

__all__ = ["instead_of"]

_STEPS = "steps go by the signs of gradients, lr falls evenly, and the best parameters found are kept; leave it out"
_TEXT = "only the language model of a multimodal one is quantized, and calibrated with text; leave it out"
_EVALUATE = "quantizing does not evaluate; load what was written, and evaluate that"
_RUN_AS = "compute_dtype says what blocks are computed in; weights keep the dtype of their files"

_INSTEAD = {
    "algorithm": "a data type and a recipe decide; see recipe",
    "amp": _RUN_AS,
    "disable_amp": _RUN_AS,
    "model_dtype": _RUN_AS,
    "device": "say device_map",
    "devices": "say device_map",
    "disable_trust_remote_code": "it is off unless trust_remote_code is given; leave it out",
    "dynamic_max_gap": _STEPS,
    "enable_adam": _STEPS,
    "enable_alg_ext": "say recipe best",
    "enable_deterministic_algorithms": "the same seed gives the same result on a CPU without it; leave it out",
    "enable_norm_bias_tuning": "norms and biases stay as they are; leave it out",
    "enable_opt_rtn": "scales are searched unless disable_opt_rtn is given; leave it out",
    "disable_torch_compile": "nothing is compiled unless enable_torch_compile is given; leave it out",
    "fp_layers": "say ignore_layers",
    "low_cpu_mem_usage": "the command never holds more than a block; leave it out",
    "low_gpu_mem_usage": "say activations cpu",
    "lr_scheduler": _STEPS,
    "mllm": _TEXT,
    "model_free": "say iters 0 and disable_opt_rtn: layers are read from files then, and no model is built",
    "model_name": "say model",
    "momentum": _STEPS,
    "nblocks": "blocks are tuned one at a time; e2e_iters steps all of them together afterwards",
    "not_use_best_mse": _STEPS,
    "nsample": "say nsamples",
    "optimizer": _STEPS,
    "platform": "models come from a directory or the Hugging Face hub; download others first, and name the directory",
    "processor": _TEXT,
    "image_processor": _TEXT,
    "quant_nontext_module": _TEXT,
    "sampler": _STEPS,
    "scale_dtype": "the format decides in which dtype scales are stored",
    "seq_len": "say seqlen",
    "shared_layers": "layers of one input are found by watching one pass; leave it out",
    "template": _TEXT,
    "tasks": _EVALUATE,
    "eval_bs": _EVALUATE,
    "eval_task_by_task": _EVALUATE,
    "to_quant_block_names": "say which blocks to leave alone with ignore_layers",
    "train_bs": "say batch_size",
    "vlm": _TEXT,
}


def instead_of(option: str) -> str:
    """What to say instead of an option, as Python writes it, with underscores; "" where nobody has heard of it."""
    return _INSTEAD.get(option, "")
