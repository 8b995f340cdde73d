"""What this package adds to AutoRound. Keep it light: torch is imported by the module named here, when it is needed."""

from auto_round.hookspecs import LazyDataType, LazyPacking, hookimpl
from auto_round.schemes import QuantizationScheme

AUTO_ROUND_API = "1.0"


@hookimpl
def quant_tensor() -> list[LazyDataType]:
    """The data types: name, where it is, one line for `auto-round dtypes`."""
    return [
        LazyDataType(
            "acme_nf4",
            "autoround_acme_nf4.acme_nf4:AcmeNf4",
            "4-bit NormalFloat of QLoRA, scales in 8 bits",
        ),
    ]


@hookimpl
def schemes() -> dict[str, QuantizationScheme]:
    """Names for settings: `auto-round quantize --scheme ACME_NF4`."""
    scheme = QuantizationScheme(bits=4, group_size=64, sym=True, data_type="acme_nf4")
    return {"ACME_NF4": scheme}


@hookimpl
def exporters() -> list[LazyPacking]:
    """How codes lie in a file of format `auto_round`."""
    target = "autoround_acme_nf4.packing:AcmeNf4Packing"
    return [LazyPacking("auto_round:acme_nf4", target, "two codes in a byte", format="auto_round")]
