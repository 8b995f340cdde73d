"""What the contract of a data type wants, as tests of core's kit. What yours cannot do is declared here, never guessed.

The kit's docstrings say what can be declared: `python -m pydoc auto_round.testing.conformance.base`.
"""

from auto_round import QuantizationScheme
from auto_round.testing.conformance import DataTypeConformance

NAME = "acme_nf4"


class TestAcmeNf4(DataTypeConformance):
    name = NAME
    schemes = tuple(QuantizationScheme(4, group_size, True, NAME) for group_size in (64, 32, -1))
    scale_dtypes = (None,)  # float32, whatever the format says
    idempotent = False  # rounded scales have another mean, and so another grid
    one_scale = True  # the mean
    # Written by the first run, then kept: commit it. What a name means stays, once files have been made with it.
    golden = "golden/acme_nf4.safetensors"
