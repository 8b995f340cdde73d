# SPDX-License-Identifier: Apache-2.0
"""What the tests of the gguf family share: recorded vectors, ggml's own C code, llama.cpp itself, small models."""

import ctypes
import importlib.util
import json
import sys
import urllib.request
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

GOLDEN = Path(__file__).parent / "golden"

if sys.platform == "linux":  # elsewhere there is no wheel, and what needs it says so; here its absence is an error
    import xllamacpp
else:  # pragma: no cover
    xllamacpp = None


def _recorded(name):
    """Description and tensors of every case recorded from auto-round 0.16.1 under a registered name."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        names = file.keys()
        for i, case in enumerate(json.loads(file.metadata()["cases"])):
            prefix = f"case{i}."
            yield case, {n.removeprefix(prefix): file.get_tensor(n) for n in names if n.startswith(prefix)}


@pytest.fixture(scope="session")
def recorded():
    return _recorded


class Ggml:
    """ggml's C quantizers, which xllamacpp's extension exports."""

    def __init__(self):
        library = ctypes.CDLL(importlib.util.find_spec("xllamacpp.xllamacpp").origin)
        self._row_size, self._quantize = library.ggml_row_size, library.ggml_quantize_chunk
        self._row_size.restype = self._quantize.restype = ctypes.c_size_t
        self._row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
        pointers = [ctypes.c_void_p, ctypes.c_void_p]
        self._quantize.argtypes = [ctypes.c_int, *pointers, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def quantize(self, weight, kind, imatrix=None):
        """Bytes uint8 [rows, bytes of a row] of a weight float32 [rows, n]."""
        weight = np.ascontiguousarray(weight.numpy(), np.float32)
        rows, cols = weight.shape
        out = np.zeros((rows, self._row_size(kind.ggml, cols)), np.uint8)
        importance = None if imatrix is None else imatrix.numpy().ctypes.data
        written = self._quantize(kind.ggml, weight.ctypes.data, out.ctypes.data, 0, rows, cols, importance)
        assert written == out.nbytes
        return torch.from_numpy(out)


@pytest.fixture(scope="session")
def ggml():
    if xllamacpp is None:
        pytest.skip("there is no wheel of xllamacpp for this platform")
    return Ggml()


def _dequantize(data, kind):
    return torch.from_numpy(gguf.quants.dequantize(data.numpy(), gguf.GGMLQuantizationType(kind.ggml)))


@pytest.fixture(scope="session")
def dequantize():
    """The gguf package's dequantization: uint8 [rows, bytes] to float32."""
    return _dequantize


class Llama:
    """A model running in llama.cpp, one thread; what it keeps of past tokens is float32."""

    FORCED = 50  # any token that is a whole character

    def __init__(self, path, context=256):
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx, parameters.n_parallel, parameters.port = context, 1, 0
        parameters.cpuparams.n_threads = 1
        parameters.warmup = parameters.fit_params = False
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.verbosity = 0
        self._server = xllamacpp.Server(parameters)
        # A server that is let go of before its loop has begun waits for that loop for ever; an answer shows it has.
        self._ask("/completion", prompt=[self.FORCED], n_predict=0)

    def _ask(self, path, **body):
        address = self._server.listening_address + path
        request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def log_probabilities(self, ids, vocabulary):
        """Of the token after `ids`, float32 [vocabulary]."""
        answer = self._ask(
            "/completion", prompt=list(ids), n_predict=1, temperature=0.0, n_probs=vocabulary, cache_prompt=True,
            ignore_eos=True, logit_bias=[[self.FORCED, 1000.0]],  # acts after the probabilities are taken
        )  # fmt: skip
        found = {t["id"]: t["logprob"] for t in answer["completion_probabilities"][0]["top_logprobs"]}
        return torch.tensor([found[i] for i in range(vocabulary)])

    def tokens(self, text):
        return self._ask("/tokenize", content=text, add_special=False)["tokens"]


@pytest.fixture(scope="session")
def llama_cpp():
    if xllamacpp is None:
        pytest.skip("there is no wheel of xllamacpp for this platform")
    return Llama


KINDS_OF_WEIGHT = ("normal", "heavy", "outlier", "bf16", "degenerate")


@pytest.fixture(scope="session")
def weights():
    """Named float32 matrices of 512 columns."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(48, 512, generator=generator)
    heavy = normal / torch.rand(48, 512, generator=generator).clamp(min=0.02).sqrt() * 0.02
    outlier = torch.randn(48, 512, generator=generator) * 0.05
    outlier[:, ::97] *= 20
    rounded = (torch.randn(48, 512, generator=generator) * 0.02).bfloat16().float()
    odd = torch.randn(8, 512, generator=generator)
    odd[0], odd[1], odd[2] = 0, odd[1].abs(), -odd[2].abs()
    odd[3] *= 1e-7
    odd[4] *= 1e4
    odd[5, :256] = 0
    odd[6], odd[7] = 0.3, -0.3
    return dict(zip(KINDS_OF_WEIGHT, (normal, heavy, outlier, rounded, odd), strict=True))


def _byte_level(pattern=None, extra=None):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *alphabet, "th", "the"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("t", "h"), ("th", "e")]))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    first = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    steps = [*first, *(extra or []), level]
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


@pytest.fixture(scope="session")
def byte_level():
    """Makes a tokenizer of 261 tokens: all bytes and two merges; split by a pattern, or as GPT-2 does."""
    return _byte_level
