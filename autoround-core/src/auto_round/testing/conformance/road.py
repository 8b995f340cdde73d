# SPDX-License-Identifier: Apache-2.0
"""The whole road with a small model: plan, tune, write, load in transformers; and results that must never change."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from auto_round.data_type import DataType
from auto_round.plugins import Registry
from auto_round.schemes import QuantizationScheme
from auto_round.testing.conformance.base import Declared, weight_like

__all__ = ["RoadTests"]


class RoadTests(Declared):
    """From a model to a checkpoint and back."""

    def test_a_checkpoint_loads_as_it_was_tuned(
        self, data_type: DataType, scheme: QuantizationScheme, registry: Registry, tmp_path: Path
    ) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

        from auto_round import AutoRound
        from auto_round.inference.convert_model import convert_hf_model, post_init

        if not data_type.encodes:
            pytest.skip("declared: encodes = False")
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64, hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=32,
        )  # fmt: skip
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "model")
        ids = torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(0))
        job = AutoRound(
            tmp_path / "model", scheme=scheme, registry=registry, dataset=ids, iters=2, nsamples=4, seqlen=16,
            batch_size=2, verbose=False,
        )  # fmt: skip
        tuned, _ = job.quantize_and_save(tmp_path / "out", format="auto_round")
        loaded: Any = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(tmp_path / "out"), dtype=torch.bfloat16
        )
        loaded, used = convert_hf_model(loaded, registry=registry)
        with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        loaded.load_state_dict(state, strict=False)
        loaded.tie_weights()
        post_init(loaded, used)
        for layer in job.plan("auto_round").quantized:
            decoded = loaded.get_submodule(layer.name).decode(torch.bfloat16)
            same = torch.equal(decoded, tuned.get_submodule(layer.name).weight)
            assert same, f"{layer.name} loads as another weight than the one that was tuned."

    def test_results_are_those_that_were_recorded(self, data_type: DataType, scheme: QuantizationScheme) -> None:
        """A name is a wire format: what it meant once, it means for ever. The file is written once, and then kept."""
        if self.golden is None:
            pytest.skip("declared: golden = None")
        file = Path(inspect.getfile(type(self))).parent / self.golden
        weight = weight_like((8, 512), torch.float32, seed=11)
        key = f"{scheme.bits}_{scheme.group_size}_{scheme.sym}".replace(" ", "")
        now = self.quantized(data_type, scheme, weight)
        recorded = {}
        if file.exists():
            with safe_open(file, "pt") as opened:
                recorded = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
        if key not in recorded:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({**recorded, key: now}, file)
            pytest.skip(f"{file.name} did not have {key}; it does now: commit it.")
        assert torch.equal(recorded[key], now), f"{self.name} gives other numbers than those in {file.name}."
