"""What is measured of a model's parts, each by native operators and by Paddle's."""

from types import SimpleNamespace

import paddle
import pytest

from passl_xcit.engine.benchmark import operators
from passl_xcit.engine.benchmark.operators import PADDLES, measure_operators, operator_lines, parts_of
from passl_xcit.modeling.backbones.crossvit import CrossViT
from passl_xcit.modeling.backbones.xcit import XCiT
from passl_xcit.ops.library import library
from passl_xcit.utils.errors import ConfigError


def tiny_xcit():
    return XCiT(patch_size=8, embed_dim=16, depth=2, num_heads=2)


def test_each_part_of_an_xcit_is_there_once():
    parts = parts_of(tiny_xcit(), paddle.ones([2, 3, 16, 24]))
    names = ["stem", "XCA block", "class-attention block"]
    assert [name for name, _, _ in parts] == names
    assert [inputs[0].shape for _, _, inputs in parts] == [[2, 3, 16, 24], [2, 6, 16], [2, 7, 16]]


def test_a_crossvit_has_its_parts_once_for_each_branch():
    parts = parts_of(CrossViT(embed_dim=(16, 32), num_heads=(2, 2)), paddle.ones([1, 3, 48, 48]))
    names = [(name, inputs[0].shape[2]) for name, _, inputs in parts]
    assert sorted(names) == [
        (name, width) for name in ("cross-attention block", "transformer block") for width in (16, 32)
    ]


def test_the_layers_are_left_without_what_looked_at_them():
    for _, layer, _ in parts_of(tiny_xcit(), paddle.ones([1, 3, 16, 16])):
        assert not layer._forward_pre_hooks


@pytest.mark.skipif(library() is None, reason="the native operators are not in use")
def test_all_parts_are_measured_in_both_modes(monkeypatch):
    monkeypatch.setattr(operators, "TURN_SECONDS", 0.001)
    monkeypatch.setattr(operators.factory, "create_model", lambda name: SimpleNamespace(backbone=tiny_xcit()))
    found = measure_operators(["tiny"], 2, 16, 3)
    assert [(each["part"], each["mode"]) for each in found[:3]] == [
        ("stem", "inference"),
        ("stem", "train"),
        ("XCA block", "inference"),
    ]
    for each in found:
        assert {"float32", PADDLES} <= set(each["seconds"])
        assert all(len(seconds) == 3 and min(seconds) > 0 for seconds in each["seconds"].values())
    assert len(operator_lines(found)) == 2 + 6


def test_without_the_operators_there_is_nothing_to_measure(monkeypatch):
    monkeypatch.setenv("PASSL_XCIT_NATIVE", "off")
    with pytest.raises(ConfigError, match="--operators: the native operators are not in use: PASSL_XCIT_NATIVE=off"):
        measure_operators(["xcit_nano_12_p16"], 1, 224, 1)


def test_the_table_tells_how_many_times_as_long_the_others_take():
    seconds = {"float32": [0.002, 0.001, 0.002], PADDLES: [0.004, 0.004, 0.005]}
    lines = operator_lines([{"model": "m", "part": "stem", "shape": [4, 3], "mode": "train", "seconds": seconds}])
    assert lines[0] == "| model | part | input | mode | float32, ms | Paddle's operators, times as long |"
    assert lines[-1] == "| m | stem | 4 x 3 | train | 2.00 | 2.50 (2.00 to 4.00) |"
