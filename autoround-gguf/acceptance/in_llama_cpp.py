# SPDX-License-Identifier: Apache-2.0
"""What files cost inside llama.cpp, and what llama.cpp's own quantizer makes of the same model.

usage: in_llama_cpp.py quantize REFERENCE.gguf DIRECTORY [--imatrix IMATRIX.gguf] PRESET ...
       in_llama_cpp.py score [--tokens 30000] REFERENCE.gguf TEXT FILE.gguf ...

`quantize` writes DIRECTORY/PRESET.gguf with llama.cpp's quantizer, one thread; presets as llama.cpp spells them, F32
among them. `score` prints for each file, the reference first, the perplexity of a text and the mean KL divergence of
its next-token distributions from the reference's, in nats: windows of 512 tokens from the beginning of the text, every
position but a window's last. The reference should be float32: of bfloat16 weights llama.cpp rounds the activations too.

Needs the packages llama-cpp-python, gguf and numpy, and not this one.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp  # type: ignore[import-not-found]
import numpy as np

WINDOW = 512


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)  # type: ignore[untyped-decorator]
def _quiet(_level: int, _text: bytes, _data: Any) -> None:
    """Take llama.cpp's log and say nothing."""


def quantize(reference: Path, directory: Path, imatrix: Path | None, presets: list[str]) -> None:
    """Write a file for each preset."""
    directory.mkdir(parents=True, exist_ok=True)
    importance, kept = _importance(imatrix) if imatrix else (None, [])
    for preset in presets:
        parameters = llama_cpp.llama_model_quantize_default_params()
        name = "LLAMA_FTYPE_ALL_F32" if preset == "F32" else f"LLAMA_FTYPE_MOSTLY_{preset}"
        parameters.ftype, parameters.nthread = getattr(llama_cpp, name), 1
        if importance is not None:
            parameters.imatrix = importance
        target = directory / f"{preset}.gguf"
        failed = llama_cpp.llama_model_quantize(str(reference).encode(), str(target).encode(), ctypes.byref(parameters))
        if failed:
            raise SystemExit(f"llama.cpp could not write {target}.")
    del kept


def _importance(path: Path) -> tuple[Any, list[Any]]:
    """An importance file as llama.cpp's library takes it, an array that ends with an empty entry; and what it needs."""
    tensors = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    names = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
    array = (llama_cpp.llama_model_imatrix_data * (len(names) + 1))()
    kept: list[Any] = []
    for entry, name in zip(array, names, strict=False):
        counts = tensors[f"{name}.counts"].reshape(-1, 1)
        means = np.ascontiguousarray(tensors[f"{name}.in_sum2"].reshape(len(counts), -1) / counts, np.float32)
        text = ctypes.create_string_buffer(name.encode())
        kept += [means, text]
        entry.name = ctypes.cast(text, ctypes.c_char_p)
        entry.data = means.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = means.size
    return array, kept


def score(reference: Path, text: Path, tokens: int, files: list[Path]) -> None:
    """Print one line of JSON for each file."""
    wanted = list(_log_probabilities(reference, text, tokens))
    for file in [reference, *files]:
        loss = divergence = 0.0
        scored = 0
        for (ids, p), (_, q) in zip(wanted, _log_probabilities(file, text, tokens), strict=True):
            divergence += float((np.exp(p) * (p - q)).sum(dtype=np.float64))
            loss -= float(q[np.arange(len(q)), ids[1:]].sum(dtype=np.float64))
            scored += len(q)
        row = {
            "file": f"{file.parent.name}/{file.name}",
            "ppl": round(float(np.exp(loss / scored)), 3),
            "kl": round(divergence / scored, 6),
        }
        print(json.dumps(row), flush=True)


def _log_probabilities(file: Path, text: Path, tokens: int) -> Iterator[tuple[Any, Any]]:
    """Token ids of each window, and float32 [window - 1, vocabulary]."""
    model = llama_cpp.Llama(
        str(file), n_ctx=WINDOW, n_batch=WINDOW, logits_all=True, n_threads=1, n_threads_batch=1, verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32,
    )  # fmt: skip
    ids = model.tokenize(text.read_bytes(), add_bos=False, special=False)[:tokens]
    for start in range(0, len(ids) - WINDOW + 1, WINDOW):
        window = np.array(ids[start : start + WINDOW])
        model.reset()
        model.eval(window.tolist())
        logits = np.array(model.scores[: WINDOW - 1], np.float32)
        logits -= logits.max(-1, keepdims=True)
        yield window, logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    model.close()


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("quantize")
    command.add_argument("reference", type=Path)
    command.add_argument("directory", type=Path)
    command.add_argument("--imatrix", type=Path)
    command.add_argument("presets", nargs="+")
    command = commands.add_parser("score")
    command.add_argument("reference", type=Path)
    command.add_argument("text", type=Path)
    command.add_argument("--tokens", type=int, default=30_000)
    command.add_argument("files", type=Path, nargs="*")
    given = parser.parse_args()
    llama_cpp.llama_log_set(_quiet, None)
    if given.command == "quantize":
        quantize(given.reference, given.directory, given.imatrix, given.presets)
    else:
        score(given.reference, given.text, given.tokens, given.files)


if __name__ == "__main__":
    main()
