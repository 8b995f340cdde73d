# SPDX-License-Identifier: Apache-2.0
"""What a key of layer_config means."""

import pytest

from auto_round.errors import PlanError
from auto_round.selectors import select, select_all

NAMES = [f"model.layers.{i}.{part}" for i in range(12) for part in ("self_attn.q_proj", "mlp.down_proj")] + ["lm_head"]


def picked(key):
    return {name.removeprefix("model.layers.") for name in select(key, NAMES)[1]}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("lm_head", {"lm_head"}),
        ("model.layers.3.mlp.down_proj", {"3.mlp.down_proj"}),
        ("layers.1", {"1.self_attn.q_proj", "1.mlp.down_proj"}),
        ("layers.11", {"11.self_attn.q_proj", "11.mlp.down_proj"}),
        ("layers.1.mlp", {"1.mlp.down_proj"}),
        ("down_proj", {f"{i}.mlp.down_proj" for i in range(12)}),
        ("layers.1.*", {"1.self_attn.q_proj", "1.mlp.down_proj"}),
        ("layers.[01].*.q_proj", {"0.self_attn.q_proj", "1.self_attn.q_proj"}),
        ("model.layers.?.mlp.*", {f"{i}.mlp.down_proj" for i in range(10)}),
        (r"layers\.(2|3)\.mlp", {"2.mlp.down_proj", "3.mlp.down_proj"}),
        (".*11.*q_proj", {"11.self_attn.q_proj"}),
        (r"re:layers\.1\.", {"1.self_attn.q_proj", "1.mlp.down_proj"}),
        ("proj", set()),
        ("layers.12", set()),
        ("down", set()),
    ],
)
def test_keys(key, expected):
    assert picked(key) == expected


def test_a_dot_is_never_a_wildcard_without_a_regex():
    assert select("layers.1", ["model.layers.11.q", "model.layersX1.q"])[1] == []


def test_the_more_specific_key_decides_whatever_the_order():
    keys = {"model.layers.0.mlp.down_proj": "exact", "layers.0": "part", "*.down_proj": "glob", "re:proj": "regex"}
    for order in (list(keys), list(reversed(keys))):
        found = select_all({k: keys[k] for k in order}, NAMES)
        assert found["model.layers.0.mlp.down_proj"] == ["regex", "glob", "part", "exact"]
        assert found["model.layers.1.mlp.down_proj"] == ["regex", "glob"]


def test_of_two_keys_of_a_kind_the_later_decides():
    assert select_all({"*.q_proj": 1, "layers.0.*": 2}, NAMES)["model.layers.0.self_attn.q_proj"] == [1, 2]


def test_keys_that_match_nothing_are_collected():
    with pytest.raises(PlanError) as caught:
        select_all({"layers.99": 1, "re:(": 1, "lm_haed": 1}, NAMES)
    assert len(caught.value.problems) == 3
    assert "lm_head" in caught.value.problems[2]
