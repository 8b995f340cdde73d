# SPDX-License-Identifier: Apache-2.0
import pytest

from auto_round.errors import PluginError, UnknownNameError
from auto_round.plugins import Registry
from auto_round.schemes import QuantizationScheme


@pytest.mark.parametrize(
    ("ask", "name", "said"),
    [
        ("scheme", "MXFP4", "scheme MXFP4 comes with autoround-mxfp: pip install autoround-mxfp"),
        ("scheme", "nvfp4", "scheme nvfp4 comes with autoround-nvfp: pip install autoround-nvfp"),
        ("scheme", "GGUF:Q4_K_M", "scheme GGUF:Q4_K_M comes with autoround-gguf: pip install autoround-gguf"),
        ("scheme", "W3A16G64", "scheme W3A16G64 comes with autoround-int: pip install autoround-int"),
        ("scheme", "autoround-fp8:FP8_BLOCK", "scheme FP8_BLOCK comes with autoround-fp8: pip install autoround-fp8"),
        ("data_type", "int_sym", "data type int_sym comes with autoround-int: pip install autoround-int"),
        ("data_type", "mx_fp6e2m3_rceil", "data type mx_fp6e2m3_rceil comes with autoround-mxfp"),
        ("output_format", "auto_awq", "format auto_awq comes with autoround-int: pip install autoround-int"),
        ("output_format", "gguf:q4_k_m", "format gguf:q4_k_m comes with autoround-gguf: pip install autoround-gguf"),
        ("packing", "pack-quantized", "packing pack-quantized comes with autoround-int: pip install autoround-int"),
        (
            "scheme",
            "MXPF4",
            "no installed plugin offers the scheme 'MXPF4'; did you mean MXFP4 (pip install autoround-mxfp)?",
        ),
    ],
)
def test_the_package_that_brings_it(ask, name, said):
    with pytest.raises(UnknownNameError) as caught:
        getattr(Registry(entry_points=False), ask)(name)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("scheme", "package"),
    [
        (QuantizationScheme(data_type="int"), "autoround-int"),
        (QuantizationScheme(data_type="mx_fp", bits=4), "autoround-mxfp"),
        (QuantizationScheme(data_type="fp", bits=8, group_size=(128, 128)), "autoround-fp8"),
        (QuantizationScheme(data_type="nv_fp"), "autoround-nvfp"),
        (QuantizationScheme(data_type="int_asym_dq", sym=False), "autoround-gguf"),
    ],
)
def test_the_package_that_brings_a_completed_name(scheme, package):
    with pytest.raises(
        UnknownNameError, match=f"data type {scheme.data_type} comes with {package}: pip install {package}"
    ):
        Registry(entry_points=False).data_type_for(scheme)


def test_core_alone_says_what_to_begin_with():
    with pytest.raises(UnknownNameError, match="no data types are installed; begin with: pip install autoround-int"):
        Registry(entry_points=False).scheme("something")


def test_a_misspelt_name(site, sources):
    site.add("autoround-acme", sources.schemes("ACME4", "ACME8") + sources.declaring("acme_fp5"))
    registry = site.registry()
    with pytest.raises(UnknownNameError, match="offers the scheme 'ACNE4'; did you mean ACME4 or ACME8"):
        registry.scheme("ACNE4")
    with pytest.raises(UnknownNameError, match="offers the data type 'acme_fq'; did you mean acme_fp5"):
        registry.data_type_for(QuantizationScheme(data_type="acme_fq"))
    with pytest.raises(UnknownNameError, match="offers the format 'autoround'; did you mean auto_round"):
        registry.output_format("autoround")
    with pytest.raises(UnknownNameError, match=r"offers the scheme 'qqqq'\.$"):
        registry.scheme("qqqq")


def test_an_installed_package_that_does_not_work(site):
    site.add("autoround-mxfp", "import module_that_is_not_there", version="0.3")
    registry = site.registry()
    with pytest.raises(
        PluginError, match=r"scheme MXFP4 comes with autoround-mxfp 0.3, which is installed but broken: Modul"
    ):
        registry.scheme("MXFP4")
    with pytest.raises(
        UnknownNameError, match=r"'else'. plugin mxfp \(autoround-mxfp 0.3\) could not be asked, it is broken"
    ):
        registry.scheme("else")


def test_an_installed_package_that_is_too_old(site, sources):
    site.add("autoround-mxfp", sources.schemes("MXFP8"))
    with pytest.raises(UnknownNameError, match="does not offer it: pip install --upgrade autoround-mxfp"):
        site.registry().scheme("MXFP4")


def test_one_of_two_packages_is_missing(site, sources):
    site.add("autoround-mxfp", sources.schemes("MXFP8"))
    with pytest.raises(UnknownNameError, match="comes with autoround-nvfp: pip install autoround-nvfp"):
        site.registry().packing("auto_round:llm_compressor")
