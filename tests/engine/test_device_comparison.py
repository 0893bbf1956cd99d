"""One step on two devices: the same step differs in nothing, and a layer that is wrong is named."""

import numpy as np
import paddle
import pytest

from passl_xcit.engine import device_comparison
from passl_xcit.engine.device_comparison import TOLERANCE, Difference, compare_devices
from passl_xcit.modeling.factory import create_model
from passl_xcit.utils.errors import ConfigError, TrainingError

SIZE = (16, 24)


@pytest.fixture
def models(tiny_model):
    """Make models for `compare_devices`: one for the reference, and one that `spoil(model)` has changed."""

    def make_models(spoil):
        made = []

        def make():
            made.append(tiny_model(seed=len(made), depth=2, drop_path_rate=0.5, drop_rate=0.5, attn_drop_rate=0.5))
            if len(made) == 2:
                spoil(made[-1])
            return made[-1]

        return make

    return make_models


def first_beyond(found):
    return next((difference for difference in found if difference.is_beyond(TOLERANCE)), None)


def nothing(model):
    pass


def test_the_same_device_gives_the_same_numbers_whatever_the_weights_were_drawn_as(models):
    found = compare_devices(models(nothing), SIZE, "cpu")
    assert {(difference.absolute, difference.relative) for difference in found} == {(0.0, 0.0)}
    assert all(difference.is_judged(TOLERANCE) and not difference.is_beyond(0.0) for difference in found)
    assert max(difference.unsteadiness for difference in found) > 1e-6


def test_outputs_come_in_the_order_of_the_computation_and_gradients_of_all_parameters_in_theirs(models, tiny_model):
    found = compare_devices(models(nothing), SIZE, "cpu")
    outputs = [difference.name for difference in found if difference.part == "output"]
    gradients = [difference.name for difference in found if difference.part == "gradient"]
    order = [
        "backbone.patch_embed",
        "backbone.blocks.0.attn.qkv",
        "backbone.blocks.0.attn",
        "backbone.blocks.1",
        "loss",
    ]
    assert [name for name in outputs if name in order] == order
    names = [name for name, parameter in tiny_model(depth=2).named_parameters() if not parameter.stop_gradient]
    assert gradients == names[::-1]


def wrong_forward(layer, factor):
    layer.register_forward_post_hook(lambda layer, inputs, output: output * factor)


@pytest.mark.parametrize("part", ["patch_embed", "blocks.0.local_mp.conv1", "blocks.1.mlp.fc2"])
@pytest.mark.parametrize("factor", [1.001, float("nan"), float("inf")])
def test_a_layer_that_computes_something_else_is_named(part, factor, models):
    def spoil(model):
        wrong_forward(dict(model.backbone.named_sublayers())[part], factor)

    first = first_beyond(compare_devices(models(spoil), SIZE, "cpu"))
    assert (first.part, first.name) == ("output", f"backbone.{part}")
    expected = pytest.approx(0.001, rel=1e-3) if factor == 1.001 else pytest.approx(np.nan, nan_ok=True)
    assert first.relative == expected


def test_a_gradient_that_is_wrong_is_named_and_no_output(models):
    def spoil(model):
        model.backbone.blocks[1].attn.proj.weight.register_hook(lambda gradient: gradient * 1.01)

    found = compare_devices(models(spoil), SIZE, "cpu")
    beyond = [difference for difference in found if difference.is_beyond(TOLERANCE)]
    assert [difference[:2] for difference in beyond] == [("gradient", "backbone.blocks.1.attn.proj.weight")]


def test_noise_lets_branches_count_that_begin_as_good_as_switched_off(models, tiny_model, monkeypatch):
    def unlike():
        made = []

        def make():
            made.append(tiny_model(eta=1e-5))
            if len(made) == 2:
                wrong_forward(made[-1].backbone.blocks[0].attn, 1.1)
            return made[-1]

        found = {difference[:2]: difference.relative for difference in compare_devices(make, SIZE, "cpu")}
        return found["output", "backbone.blocks.0"]

    noisy = unlike()
    monkeypatch.setattr(device_comparison, "NOISE", 0.0)
    assert noisy > 100 * unlike()


def test_a_step_that_a_device_cannot_run_is_told_in_one_line(models):
    def spoil(model):
        def fail(layer, inputs, output):
            raise RuntimeError("a trace\n\n(NotFound) The kernel `gelu` is not registered.")

        model.backbone.blocks[0].mlp.act.register_forward_post_hook(fail)

    with pytest.raises(TrainingError) as caught:
        compare_devices(models(spoil), SIZE, "cpu")
    assert str(caught.value) == "cpu cannot run a training step: (NotFound) The kernel `gelu` is not registered."


def test_a_device_that_is_not_there_is_refused_and_the_current_one_stays(models):
    before = paddle.get_device()
    with pytest.raises(ConfigError, match="no device 'tpu'"):
        compare_devices(models(nothing), SIZE, "tpu")
    assert paddle.get_device() == before


@pytest.mark.parametrize(
    ("relative", "unsteadiness", "judged", "beyond"),
    [
        (0.0, 0.0, True, False),
        (TOLERANCE, TOLERANCE, True, False),
        (2 * TOLERANCE, TOLERANCE, True, True),
        (1.0, 2 * TOLERANCE, False, False),
        (np.inf, 0.0, True, True),
        (np.nan, 0.0, True, True),
        (np.nan, 1.0, True, True),
    ],
)
def test_what_small_changes_change_judges_nothing_unless_it_is_no_number(relative, unsteadiness, judged, beyond):
    difference = Difference("gradient", "w", 1.0, relative, unsteadiness)
    assert (difference.is_judged(TOLERANCE), difference.is_beyond(TOLERANCE)) == (judged, beyond)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["xcit_nano_12_p16", "crossvit_9_dagger_240", "regnety_002"])
def test_outputs_are_always_judged_and_gradients_but_before_relus(name):
    found = compare_devices(lambda: create_model(name), (224, 224), "cpu")
    unsteady = {difference.name for difference in found if not difference.is_judged(TOLERANCE)}
    assert not unsteady & {difference.name for difference in found if difference.part == "output"}
    if name == "xcit_nano_12_p16":
        assert not unsteady
    elif name == "crossvit_9_dagger_240":
        assert all(name.startswith("backbone.patch_embed.") or name.endswith("wk.bias") for name in unsteady)
    else:
        assert len(unsteady) > 50


def test_differences_are_relative_to_the_largest_value():
    expected, changed, found = ({("output", "a"): np.array([4.0, value], "float32")} for value in (-8.0, -6.0, -7.0))
    assert device_comparison._differences(expected, changed, found) == [("output", "a", 1.0, 0.125, 0.25)]


def test_what_differs_from_nothing_but_zeros_is_infinitely_off():
    zero, found = ({("output", "a"): np.array([value], "float32")} for value in (0.0, 1e-9))
    (difference,) = device_comparison._differences(zero, zero, found)
    assert difference.relative == np.inf and difference.is_beyond(TOLERANCE)
