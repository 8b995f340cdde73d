# SPDX-License-Identifier: Apache-2.0
from auto_round.plugins.other_distribution import other_distribution
from auto_round.testing.distributions import FakeDistribution


def test_alone():
    assert other_distribution() is None


def test_beside_us(tmp_path):
    with FakeDistribution("auto-round", "7.1").installed(tmp_path):
        sentence = other_distribution()
    assert sentence.startswith("the distribution auto-round 7.1 is installed beside autoround-core")
    assert "pip uninstall auto-round" in sentence
    assert sentence.count("\n") == 0
