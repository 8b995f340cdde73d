# SPDX-License-Identifier: Apache-2.0
"""Is everything where it belongs when blocks are computed on another device? Exit code 0 if it is.

usage: other_device.py MODEL TEXT SCHEME...

No accelerator is needed: the device is one of PyTorch's Python backends (torch 2.9 or newer). Its tensors say that they
are elsewhere and compute on the CPU, and an operation that mixes them with tensors of the CPU fails, as it does on a
GPU. Two blocks of the model are quantized there and on the CPU, attention written out, because torch computes its fused
attention on CPUs alone.

Without steps both must be the same to the last bit: data types work in larger pieces there, on the same numbers. With
steps sums are added up in another order and the sign of a gradient near zero turns, so that weights take other ways to
losses that were seen to differ by less than a thirtieth; a tenth is let pass.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import nn
from torch.utils import backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "elsewhere"
DEVICE = f"{NAME}:0"
STEPS = {"iters": 20, "nsamples": 32, "seqlen": 64, "batch_size": 4}
Options = dict[str, Any]
CASES: tuple[tuple[str, Options, tuple[tuple[str, Options], ...]], ...] = (
    ("no steps", {"iters": 0}, (("", {}),)),
    (
        "steps",
        {},
        (("", {}), (", activations on the device", {"activations": "device"}), (", low memory", {"low_memory": True})),
    ),
    ("steps, best recipe", {"recipe": "best"}, (("", {}),)),
    ("steps, of all blocks together, too", {"e2e_iters": 4}, (("", {}),)),
)
"""What decides a result, run on the CPU once, and with it what decides nothing."""

APART = 0.1

MOVING = ("aten::copy_", "aten::_to_copy")
PICKING = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")  # may be told positions by the CPU
ANSWERING = ("aten::_local_scalar_dense", "aten::equal")


class Elsewhere(torch.Tensor):
    """A tensor of that device."""

    held: torch.Tensor

    @staticmethod
    def of(held: torch.Tensor) -> Elsewhere:
        """What holds this tensor of the CPU."""
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(  # noqa: SLF001 - documented, and the only way
            Elsewhere, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=torch.device(DEVICE),
        )  # fmt: skip
        made.held = held
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(held: dict[str, torch.Tensor], *_: Any) -> Elsewhere:
        return Elsewhere.of(held["held"])

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copied: torch.Tensor = Elsewhere.of(self.held.clone())
        if isinstance(self, nn.Parameter):
            copied = nn.Parameter(copied, requires_grad=self.requires_grad)
        memo[id(self)] = copied
        return copied

    # What a tensor without memory of its own is not asked.

    def tolist(self) -> Any:
        return self.held.tolist()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        name, kwargs = func.name().split(".")[0], dict(kwargs or {})
        for tensor in tree_leaves((args, kwargs)) if name not in MOVING + PICKING else ():
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, Elsewhere) and tensor.dim():
                raise RuntimeError(f"{func}: a tensor of the CPU, {list(tensor.shape)}, among those of the device")
        to_cpu = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        answer = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if name == "aten::copy_" and not isinstance(args[0], Elsewhere):
            return args[0]
        if to_cpu or name in ANSWERING:
            return answer
        wrapped = tree_map(lambda t: Elsewhere.of(t) if isinstance(t, torch.Tensor) else t, answer)
        return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value


def set_up() -> torch.library.Library:
    """Make the device known to torch; it lasts as long as what is returned."""
    backend_registration._setup_privateuseone_for_python_backend(NAME)  # noqa: SLF001 - the only name there is
    library = torch.library.Library("aten", "IMPL")

    def empty(size: Any, dtype: Any = None, **_: Any) -> torch.Tensor:
        return Elsewhere.of(torch.empty(size, dtype=dtype))

    def empty_strided(size: Any, stride: Any, dtype: Any = None, **_: Any) -> torch.Tensor:
        return Elsewhere.of(torch.empty_strided(size, stride, dtype=dtype))

    def copy_from(source: torch.Tensor, target: torch.Tensor, _non_blocking: bool = False) -> torch.Tensor:
        _held(target).copy_(_held(source))
        return target

    for name, function in (("empty.memory_format", empty), ("empty_strided", empty_strided), ("_copy_from", copy_from)):
        library.impl(name, function, "PrivateUse1")
    return library


def quantized(model: str, text: str, scheme: str, device: str, options: Options) -> tuple[Any, list[float]]:
    """Weights of two blocks, and the losses they end at."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from auto_round import AutoRound

    logging.disable_progress_bar()
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto", attn_implementation="eager")
    loaded.model.layers = loaded.model.layers[:2]
    tokenizer = AutoTokenizer.from_pretrained(model)
    job = AutoRound(
        loaded, tokenizer, scheme=scheme, dataset=text, device_map=device, verbose=False, **{**STEPS, **options}
    )
    weights = {name: p.detach().cpu() for name, p in job.quantize()[0].named_parameters()}
    assert job.report is not None
    return weights, [block.loss_after for block in job.report.blocks if block.loss_after is not None]


def main(model: str, text: str, *schemes: str) -> int:
    """Compare."""
    warnings.filterwarnings("ignore")
    library, failed = set_up(), 0
    for scheme in schemes:
        for case, deciding, ways in CASES:
            here, expected = quantized(model, text, scheme, "cpu", deciding)
            for way, options in ways:
                there, losses = quantized(model, text, scheme, DEVICE, {**deciding, **options})
                failed += not _compared(f"{scheme:14} {case + way:34}", there, here, losses, expected)
    del library
    return int(failed > 0)


def _compared(
    title: str,
    there: dict[str, torch.Tensor],
    here: dict[str, torch.Tensor],
    losses: list[float],
    expected: list[float],
) -> bool:
    """Print a line; whether it is as it should be."""
    apart = max((abs(a / b - 1) for a, b in zip(losses, expected, strict=True)), default=0.0)
    same = all(torch.equal(there[name], weight) for name, weight in here.items())
    good = apart <= APART if expected else same
    told = "the same bits" if same else f"losses {apart:.3f} apart"
    print(f"{title} {told}{'' if good else '   NOT AS IT SHOULD BE'}", flush=True)
    return good


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
