# SPDX-License-Identifier: Apache-2.0
"""Runs in processes of their own, and directories to compare."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

PROGRAM = Path(__file__).parent / "started.py"
BLOCKS = 3
CONFIG = LlamaConfig(
    vocab_size=256, hidden_size=32, intermediate_size=48, num_hidden_layers=BLOCKS, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, pad_token_id=0, bos_token_id=1,
    eos_token_id=2,
)  # fmt: skip
LENGTHS = [16] * 8


class Processes:
    """Starts runs of `auto_round` on a model in processes of their own."""

    def __init__(self, folder, model):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(PROGRAM), str(folder), str(model)]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.model = model
        assert self._line() == "ready"

    def _line(self):
        line = self._process.stdout.readline()
        assert line, "the program that starts processes ended"
        return line.strip()

    def together(self, *jobs):
        """Start all of them, wait for all, and say how each ended."""
        whole = [{"model": str(self.model), "lengths": LENGTHS, "options": {}, **job} for job in jobs]
        print(json.dumps(whole, default=str), file=self._process.stdin, flush=True)
        ends = json.loads(self._line())
        assert not any(end["hung"] for end in ends), ends
        return ends

    def run(self, output, **job):
        """One of them."""
        return self.together({"output": output, **job})[0]

    def close(self):
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """A model of three blocks, with weights large enough that rounding them shows."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.bfloat16)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.08)
        elif len(parameter) > 1:
            parameter.data[5] = 32.0  # a loud channel, which the improved recipe makes equal to the others
    directory = tmp_path_factory.mktemp("small") / "model"
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def processes(tmp_path_factory, small_model):
    """One program for all tests of a session: what it imports takes longer than the runs."""
    started = Processes(tmp_path_factory.mktemp("answers"), small_model)
    yield started
    started.close()


@pytest.fixture(scope="session")
def content():
    """Every file below a directory, by name."""
    return lambda folder: {
        str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()
    }
