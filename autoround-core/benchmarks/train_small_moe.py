# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: INP001 - a script, no package
"""Train a small mixture-of-experts language model to measure on: attention with norms of queries and keys, and experts.

    python train_small_moe.py TEXT TOKENIZER_DIR OUT_DIR [--steps 400]

TEXT is all it learns from, and accuracy.md trains it on the calibration text; what is measured must not be in it. Steps
are counted, not timed, so that a machine gives the same weights again.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

LENGTH, BATCH, STEP, WARMUP = 256, 12, 3e-3, 40


def small_moe(vocabulary: int) -> Qwen3MoeForCausalLM:
    """Four blocks of eight experts, two for a token; every width a multiple of 128."""
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=vocabulary,
            hidden_size=256,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=32,
            num_experts=8,
            num_experts_per_tok=2,
            moe_intermediate_size=128,
            norm_topk_prob=True,
            output_router_logits=True,
            router_aux_loss_coef=0.01,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
        )
    )


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("tokenizer")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    tokens = torch.tensor(tokenizer(args.text.read_text(encoding="utf-8"))["input_ids"])
    model = small_moe(len(tokenizer))
    model.set_experts_implementation("eager")  # the fastest on a CPU, with its backward pass
    print(f"{len(tokens)} tokens, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million weights", flush=True)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=STEP, betas=(0.9, 0.95))
    start = time.monotonic()
    for step in range(args.steps):
        falling = 0.05 + 0.475 * (1 + math.cos(math.pi * step / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = STEP * min(1.0, (step + 1) / WARMUP) * falling
        at = torch.randint(0, len(tokens) - LENGTH, (BATCH,)).tolist()
        batch = torch.stack([tokens[n : n + LENGTH] for n in at])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 49:
            print(f"step {step + 1} loss {loss.item():.3f} {time.monotonic() - start:.0f} s", flush=True)
    model.config.output_router_logits = False
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
