# SPDX-License-Identifier: Apache-2.0
"""Do vLLM and transformers read the same model out of a checkpoint? Exit code 0 if they do.

usage: vllm_agrees.py CHECKPOINT TEXT [SAME]

transformers loads SAME instead, if it is given: the same weights in a format that it reads by itself. Each of the two
runs in a process of its own, in bfloat16, and scores the first 16 windows of 256 tokens of the text. Two runtimes sum
in different orders, in numbers of 8 bits of precision: single tokens differ by up to a tenth of a nat in either
direction, the mean over 4080 of them by some ten-thousandths. A transposed, shifted or misread weight costs whole nats.
The bar, 0.005 nats on the mean negative log-likelihood, lies well between.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

WINDOW, COUNT, TOLERANCE = 256, 16, 0.005


def windows(checkpoint: str, text: str) -> list[list[int]]:
    """The text as token ids, cut."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer(Path(text).read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"][: WINDOW * COUNT]
    return [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]


def score_transformers(checkpoint: str, ids: list[list[int]]) -> list[float]:
    """Log-likelihood of every token but the first of each window."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16, device_map="cpu").eval()
    batch = torch.tensor(ids)
    with torch.no_grad():
        log_probs = torch.log_softmax(model(input_ids=batch, use_cache=False).logits[:, :-1].float(), -1)
    scores: list[float] = log_probs.gather(-1, batch[:, 1:, None]).flatten().tolist()
    return scores


def score_vllm(checkpoint: str, ids: list[list[int]]) -> list[float]:
    """The same, by vLLM."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    from vllm import LLM, SamplingParams
    from vllm_emulated import register_emulations

    register_emulations()
    limits = {"max_model_len": WINDOW + 1, "max_num_seqs": 1, "max_num_batched_tokens": WINDOW + 1}
    model = LLM(model=checkpoint, dtype="bfloat16", enforce_eager=True, **limits)
    wanted = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    outputs = model.generate([{"prompt_token_ids": window} for window in ids], wanted)
    return [
        position[token].logprob
        for window, output in zip(ids, outputs, strict=True)
        for token, position in zip(window[1:], output.prompt_logprobs[1:], strict=True)
    ]


SCORERS = {"--transformers": score_transformers, "--vllm": score_vllm}


def in_own_process(scorer: str, checkpoint: str, text: str) -> list[float]:
    """Run this file again for one runtime; its last line of output is the answer."""
    command = [sys.executable, __file__, scorer, checkpoint, text]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    scores: list[float] = json.loads(lines[-1])
    return scores


def main() -> None:
    """Compare, or be one of the two."""
    if sys.argv[1] in SCORERS:
        scorer, checkpoint, text = sys.argv[1:]
        print("\n" + json.dumps(SCORERS[scorer](checkpoint, windows(checkpoint, text))))
        return
    checkpoint, text, *more = sys.argv[1:]
    same = more[0] if more else checkpoint
    ours, theirs = in_own_process("--transformers", same, text), in_own_process("--vllm", checkpoint, text)
    nll_ours, nll_theirs = -sum(ours) / len(ours), -sum(theirs) / len(theirs)
    largest = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    difference = abs(nll_ours - nll_theirs)
    print(f"{checkpoint}: mean NLL over {len(ours)} tokens: transformers {nll_ours:.5f}, vLLM {nll_theirs:.5f}")
    print(f"they differ by {difference:.5f} (bar {TOLERANCE}), at one token by {largest:.4f} at most")
    if not difference <= TOLERANCE:
        sys.exit("vLLM and transformers do not agree")


if __name__ == "__main__":
    main()
