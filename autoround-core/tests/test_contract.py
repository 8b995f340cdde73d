# SPDX-License-Identifier: Apache-2.0
"""The contract of a data type, followed step by step in a script: nothing is installed, nothing else is written."""

import pytest
import torch
from torch.utils.data import DataLoader

from auto_round import AutoRound
from auto_round.data_type.register import declarations, register_dtype
from auto_round.data_type.utils import get_quant_func, reshape_pad_tensor_by_group_size, revert_tensor_by_pad, round_ste
from auto_round.errors import ContractError, SchemeError
from auto_round.schemes import PRESET_SCHEMES, QuantizationScheme


@pytest.fixture
def your_dtype(isolated_registry):
    @register_dtype(["your_dtype", "your_dtype_v2"])
    def quant_tensor_your_dtype(tensor, bits=4, group_size=128, v=0, min_scale=0, max_scale=0, imatrix=None, **kwargs):
        """Half of the range in the second variant."""
        groups, shape, padding = reshape_pad_tensor_by_group_size(tensor, group_size)
        top = 2 ** (bits - 1) - 1
        peak = groups.abs().amax(-1, keepdim=True).float() * max_scale.unsqueeze(-1)
        if kwargs["data_type"] == "your_dtype_v2":
            peak = peak / 2
        scale = (peak / top).clamp(min=1e-5)
        q = round_ste(groups / scale + v).clamp(-top, top)
        return revert_tensor_by_pad(q * scale, shape, padding).to(tensor.dtype), scale, None

    return quant_tensor_your_dtype


@pytest.fixture
def dataloader(tokens):
    return DataLoader(tokens, batch_size=2)


@pytest.mark.parametrize("name", ["your_dtype", "your_dtype_v2"])
def test_the_guides_own_test(your_dtype, model_dir, dataloader, name):
    ar = AutoRound(model_dir, bits=4, group_size=128, data_type=name, dataset=dataloader, iters=2, nsamples=2)
    compressed_model, _ = ar.quantize()
    logits = compressed_model(torch.arange(4, 20)[None]).logits
    assert torch.isfinite(logits).all()


def test_the_variants_differ(your_dtype, model_dir, dataloader):
    weights = []
    for name in ("your_dtype", "your_dtype_v2"):
        model, _ = AutoRound(
            model_dir, data_type=name, dataset=dataloader, iters=1, nsamples=2, verbose=False
        ).quantize()
        weights.append(model.model.layers[0].mlp.up_proj.weight)
    assert weights[1].abs().max() < weights[0].abs().max()


def test_a_scheme_added_at_run_time(your_dtype, model_dir, dataloader):
    PRESET_SCHEMES["YOUR_SCHEME"] = QuantizationScheme(bits=4, group_size=32, sym=True, data_type="your_dtype")
    try:
        assert "your_scheme" in PRESET_SCHEMES
        ar = AutoRound(model_dir, scheme="YOUR_SCHEME", dataset=dataloader, iters=0, nsamples=2, verbose=False)
        _, layer_config = ar.quantize()
        assert layer_config["model.layers.0.mlp.up_proj"]["group_size"] == 32
    finally:
        del PRESET_SCHEMES["YOUR_SCHEME"]
    assert PRESET_SCHEMES.get("YOUR_SCHEME") is None


def test_looking_a_function_up(your_dtype):
    function, name = get_quant_func("your_dtype", bits=4)
    assert name == "your_dtype"
    qdq, _, _ = function(torch.ones(2, 8), max_scale=torch.ones(2), group_size=-1, data_type=name)
    assert torch.equal(qdq, torch.ones(2, 8))


def test_a_misspelt_parameter_is_found_when_it_is_registered():
    before = list(declarations())
    with pytest.raises(ContractError, match="tensor_max"):

        @register_dtype("odd")
        def quant(tensor, act_max=None, tensor_maxx=None):
            return tensor, None, None

    assert declarations() == before


def test_what_is_not_always_offered_needs_a_default():
    with pytest.raises(ContractError, match="asks for imatrix and init_scale without a default, .*: give them one"):

        @register_dtype("needy")
        def quant(tensor, bits, group_size, v, *, init_scale, imatrix, global_scale=None):
            return tensor, None, None


RUN = {"iters": 2, "nsamples": 2, "bits": 4, "group_size": 32, "verbose": False}


@pytest.mark.parametrize("options", [{}, {"recipe": "best"}, {"e2e_iters": 2}, {"iters": 0}])
def test_a_data_type_that_learns_nothing(isolated_registry, model_dir, dataloader, options):
    @register_dtype("signs")
    def quant_tensor_signs(tensor, group_size=32):
        groups, shape, padding = reshape_pad_tensor_by_group_size(tensor.float(), group_size)
        scale = groups.abs().mean(-1, keepdim=True)
        signs = torch.where(groups < 0, -1.0, 1.0)
        return revert_tensor_by_pad(signs * scale, shape, padding).to(tensor.dtype), scale, None

    ar = AutoRound(model_dir, data_type="signs", dataset=dataloader, **{**RUN, **options})
    model, _ = ar.quantize()
    assert model.model.layers[0].mlp.up_proj.weight[0, :32].abs().unique().numel() == 1


def give_nan(tensor, v):
    return tensor + v.sum().to(tensor.dtype) * torch.nan, None, None


def cut(tensor, v):
    return (tensor + v.sum().to(tensor.dtype))[:1], None, None


def two(tensor, v):
    return tensor + v.sum().to(tensor.dtype), None


def flat(tensor, v):
    return (tensor + v.sum().to(tensor.dtype)).detach(), None, None


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (give_nan, "wrong rounds the weight of .* to .* values that are NaN or infinite"),
        (cut, r"wrong rounds the weight of .*, \[32, 32\], to \[1, 32\]"),
        (two, "wrong has to return the rounded tensor, scale and zero point; for .* it is 2 values"),
        (flat, "wrong gives no gradient for v: round straight through"),
    ],
)
def test_what_is_no_result_is_named(isolated_registry, model_dir, dataloader, tmp_path, function, told):
    register_dtype("wrong")(function)
    ar = AutoRound(model_dir, data_type="wrong", dataset=dataloader, **RUN)
    with pytest.raises(ContractError, match=told):
        ar.quantize_and_save(tmp_path / "out", format="fake")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", [None, 3, [], [""]])
def test_a_name_that_is_none_is_refused(given):
    with pytest.raises(ContractError, match="takes a name or a list of names"):
        register_dtype(given)


def test_the_decorator_without_a_name_says_how_it_is_written():
    with pytest.raises(ContractError, match=r'write @register_dtype\("my_type"\)'):

        @register_dtype
        def quant_tensor_nameless(tensor):
            return tensor, None, None


@pytest.mark.parametrize(
    "fields", [{"data_type": 7}, {"data_type": ""}, {"act_data_type": 3}, {"sym": "no"}, {"act_dynamic": 1}]
)
def test_fields_of_the_wrong_kind_are_no_scheme(fields):
    with pytest.raises(SchemeError, match=next(iter(fields))):
        QuantizationScheme(**{"data_type": "int", **fields})
