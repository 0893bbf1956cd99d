"""Stochastic depth, the MLP, and how layers are initialised."""

import math

import numpy as np
import paddle
import pytest
from paddle import nn

from passl_xcit.modeling.layers import DropPath, Mlp, constant, init_transformer_, parameter_filled

ONES = paddle.ones([2000, 3, 2])


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.9])
def test_an_evaluation_drops_nothing(rate):
    layer = DropPath(rate)
    layer.eval()
    assert (layer(ONES) == ONES).all()


def test_a_rate_of_0_drops_nothing():
    assert DropPath(0.0)(ONES) is ONES


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_training_drops_whole_samples_and_scales_the_others(rate):
    paddle.seed(0)
    dropped = DropPath(rate)(ONES).numpy().reshape(2000, -1)
    assert (dropped == dropped[:, :1]).all()
    np.testing.assert_allclose(np.unique(dropped), [0, 1 / (1 - rate)], rtol=1e-6)
    kept = (dropped[:, 0] > 0).sum()
    assert abs(kept - 2000 * (1 - rate)) < 5 * math.sqrt(2000 * rate * (1 - rate))


def test_draws_come_from_the_frameworks_seed():
    def drop(seed):
        paddle.seed(seed)
        return DropPath(0.5)(ONES).numpy().tobytes()

    assert drop(1) == drop(1) != drop(2)


def test_samples_are_kept_as_paddles_bernoulli_keeps_them():
    """Which Ascend does not have."""
    paddle.seed(3)
    dropped = DropPath(0.3)(ONES)[:, 0, 0]
    paddle.seed(3)
    kept = paddle.bernoulli(paddle.full([2000], 0.7))
    np.testing.assert_array_equal(dropped.numpy(), (kept / 0.7).numpy())


def test_gradients_pass_through_kept_samples_only():
    paddle.seed(0)
    x = paddle.ones([64, 2])
    x.stop_gradient = False
    out = DropPath(0.5)(x)
    out.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), out.numpy())


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2])
def test_rates_outside_0_to_1_are_refused(rate):
    with pytest.raises(ValueError, match=rf"drop_path_rate must lie in \[0, 1\), not {rate}"):
        DropPath(rate)


def test_the_mlp_is_linear_gelu_linear():
    paddle.seed(0)
    mlp = Mlp(3, 5)
    x = np.random.default_rng(0).normal(size=(2, 4, 3))
    weights = {name: value.numpy().astype("float64") for name, value in mlp.state_dict().items()}
    hidden = x @ weights["fc1.weight"] + weights["fc1.bias"]
    hidden = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
    expected = hidden @ weights["fc2.weight"] + weights["fc2.bias"]
    np.testing.assert_allclose(mlp(paddle.to_tensor(x, dtype="float32")).numpy(), expected, atol=1e-6)


def test_the_mlp_drops_in_training_only():
    paddle.seed(0)
    mlp, x = Mlp(30, 50, drop=0.5), paddle.ones([1, 30])
    assert not (mlp(x) == mlp(x)).all()
    mlp.eval()
    assert (mlp(x) == mlp(x)).all()


def initialised(layer):
    paddle.seed(0)
    for parameter in layer.parameters():
        parameter.set_value(paddle.full_like(parameter, 7.0))
    init_transformer_(layer)
    return [None if value is None else value.numpy() for value in (layer.weight, layer.bias)]


def test_linear_layers_get_a_normal_of_0_02_cut_at_2():
    weight, bias = initialised(nn.Linear(300, 400))
    assert weight.std() == pytest.approx(0.02, rel=0.02)
    assert 0.06 < np.abs(weight).max() < 0.2  # not cut at two deviations, as timm's trunc_normal_ is not
    assert (bias == 0).all()


@pytest.mark.parametrize("layer", [nn.LayerNorm(8), nn.BatchNorm2D(8)])
def test_norms_get_1_and_0(layer):
    weight, bias = initialised(layer)
    assert (weight == 1).all() and (bias == 0).all()


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Conv2D(512, 512, 3, groups=512), 9),
        (nn.Conv2D(64, 200, 1), 64),
        (nn.Conv2D(3, 400, 3), 27),
        (nn.Conv2D(32, 64, 3, groups=4), 72),
    ],
)
def test_convolutions_get_torchs_uniform(layer, fan_in):
    bound = 1 / math.sqrt(fan_in)
    for values in initialised(layer):
        assert np.abs(values).max() <= bound
        assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.15)
        assert abs(values.mean()) < bound / 5


@pytest.mark.parametrize("layer", [nn.Linear(3, 4, bias_attr=False), nn.Conv2D(3, 4, 3, bias_attr=False)])
def test_layers_without_bias_are_initialised(layer):
    weight, bias = initialised(layer)
    assert bias is None and not (weight == 7).any()


def test_other_layers_are_left_alone():
    layer = nn.Embedding(3, 4)
    before = layer.weight.numpy()
    init_transformer_(layer)
    np.testing.assert_array_equal(layer.weight.numpy(), before)


def test_a_filled_parameter_is_trainable():
    layer = nn.Layer()
    layer.gamma = parameter_filled(layer, [2, 3], 0.5)
    assert [name for name, _ in layer.named_parameters()] == ["gamma"]
    assert (layer.gamma == 0.5).all() and layer.gamma.shape == [2, 3] and not layer.gamma.stop_gradient


def test_a_constant_is_made_once_for_each_type_and_argument():
    made = []

    def ramp(length):
        made.append(length)
        return np.arange(length)

    tensors = [constant(ramp, length, dtype=dtype) for length in (2, 3) for dtype in ("float32", "float16")]
    assert constant(ramp, 2, dtype="float32") is tensors[0] and made == [2, 2, 3, 3]
    assert [str(tensor.dtype) for tensor in tensors] == ["paddle.float32", "paddle.float16"] * 2
    np.testing.assert_array_equal(tensors[2].numpy(), [0, 1, 2])
    assert all(tensor.stop_gradient for tensor in tensors)
