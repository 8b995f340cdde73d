# SPDX-License-Identifier: Apache-2.0
"""The whole road with a small model: plan, tune, write, load in transformers; and results that must never change."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from auto_round.data_type import DataType
from auto_round.plugins import Registry
from auto_round.schemes import QuantizationScheme
from auto_round.testing.conformance.base import Declared, weight_like

__all__ = ["RoadTests"]

LOAD = """
import sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert model(torch.arange(8)[None]).logits.isfinite().all(), "the logits of the loaded model are no numbers"
layers = {name: module for name, module in model.named_modules() if hasattr(module, "packing")}
save_file({name: layer.decode(torch.bfloat16).contiguous() for name, layer in layers.items()}, sys.argv[2])
"""

_tried: dict[str, str] = {}
"""Modules of data types, and the one that was loaded in a process of its own."""


class RoadTests(Declared):
    """From a model to a checkpoint and back."""

    def test_a_checkpoint_loads_as_it_was_tuned(
        self, data_type: DataType, scheme: QuantizationScheme, registry: Registry, tmp_path: Path
    ) -> None:
        self._loads_as_tuned(self._checkpoint(data_type, scheme, registry, tmp_path), registry, tmp_path)

    def test_the_improved_recipe_takes_it(
        self, data_type: DataType, registry: Registry, tmp_path: Path, slow: str
    ) -> None:
        """Which, where it can, rounds columns by themselves and scales channels; with the first scheme."""
        tuned = self._checkpoint(data_type, self.schemes[0], registry, tmp_path, recipe="best")
        self._loads_as_tuned(tuned, registry, tmp_path)

    def _loads_as_tuned(self, tuned: Mapping[str, torch.Tensor], registry: Registry, folder: Path) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        from auto_round.inference.convert_model import convert_hf_model, post_init

        loaded: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "out"), dtype=torch.bfloat16)
        loaded, used = convert_hf_model(loaded, registry=registry)
        loaded.load_state_dict(load_file(folder / "out" / "model.safetensors"), strict=False)
        loaded.tie_weights()
        post_init(loaded, used)
        for name, weight in tuned.items():
            same = torch.equal(loaded.get_submodule(name).decode(torch.bfloat16), weight)
            assert same, f"{name} loads as another weight than the one that was tuned."

    def test_a_checkpoint_loads_in_a_process_of_its_own(
        self, data_type: DataType, registry: Registry, tmp_path: Path, slow: str
    ) -> None:
        """As its users load it: by transformers, in a process that knows nothing but what is installed.

        That takes a while, and is done once for each module of data types, with the first scheme.
        """
        if not registry.provenance(data_type).distribution:
            pytest.skip("no installed distribution brings it, so another process would not find it")
        tried = _tried.setdefault(type(data_type).__module__, self.name)
        if tried != self.name:
            pytest.skip(f"tried with {tried}, which is in the same module")
        tuned = self._checkpoint(data_type, self.schemes[0], registry, tmp_path)
        command = [sys.executable, "-c", LOAD, str(tmp_path / "out"), str(tmp_path / "loaded.safetensors")]
        done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - its own program
        told = "AutoModelForCausalLM.from_pretrained must load the checkpoint where nothing is imported beforehand"
        assert done.returncode == 0, f"{told}; it ended so:\n{done.stderr[-2000:]}"
        loaded = load_file(tmp_path / "loaded.safetensors")
        for name, weight in tuned.items():
            assert name in loaded, f"{told}; {name} is loaded as a layer that is not quantized."
            same = torch.equal(loaded[name], weight)
            assert same, f"{told}; {name} is another weight there than the one that was tuned."

    def _checkpoint(
        self, data_type: DataType, scheme: QuantizationScheme, registry: Registry, folder: Path, **options: Any
    ) -> dict[str, torch.Tensor]:
        """Quantize a small model into `out` below a folder; its layers' weights as they were tuned, by name."""
        from transformers import AutoModelForCausalLM, LlamaConfig

        from auto_round import AutoRound

        if not data_type.encodes:
            pytest.skip("declared: encodes = False")
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64, hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=32,
        )  # fmt: skip
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / "model")
        ids = torch.randint(0, 64, (16, 32), generator=torch.Generator().manual_seed(0))
        job = AutoRound(
            folder / "model", scheme=scheme, registry=registry, dataset=ids, iters=2, nsamples=16, seqlen=32,
            batch_size=2, verbose=False, **options,
        )  # fmt: skip
        tuned, _ = job.quantize_and_save(folder / "out", format="auto_round")
        return {layer.name: tuned.get_submodule(layer.name).weight for layer in job.plan("auto_round").quantized}

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
