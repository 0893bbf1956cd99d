"""AdamW's step, moving averages and norms by native operators: formulas in float64, and what Paddle makes of them."""

import os
import re
from unittest import mock

import numpy as np
import paddle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paddle import nn

from passl_xcit.ops.library import MODE, Library
from passl_xcit.ops.update import adamw_step, applies_to, move_averages, norm_of
from passl_xcit.solver.optimizer import NativeAdamW

per_example = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
shapes = st.lists(st.lists(st.integers(0, 40), max_size=3), min_size=1, max_size=4)
LONG = [[3 * 16 * 1024 + 5], [16 * 1024], [1], [129, 257]]  # around the length of a piece
NUMBERS = {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-6}


def drawn(shapes, seed):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype("float32") for shape in shapes]


def tensors_of(arrays):
    return [paddle.to_tensor(array) for array in arrays]


def with_threads(threads):
    return mock.patch.object(Library, "threads", lambda self: threads)


def one_step(shapes, threads=2):
    """[weights, first moments, second moments, powers] after the fifth step; every second parameter decays."""
    values = [drawn(shapes, seed) for seed in range(4)]
    values[3] = [array**2 for array in values[3]]
    weights, gradients, first, second = map(tensors_of, values)
    powers = [[paddle.to_tensor([beta**5], "float32") for beta in (0.9, 0.99)] for _ in shapes]
    lists = zip(weights, gradients, first, second, powers)
    rows = [(*row, *power, i % 2 == 0) for i, (*row, power) in enumerate(lists)]
    with with_threads(threads):
        adamw_step(rows, 0.01, 0.1, **NUMBERS)
    powers = [tensor for pair in powers for tensor in pair]
    return [[tensor.numpy() for tensor in group] for group in (weights, first, second, powers)], values


def formula(values):
    """Algorithm 2 of arXiv 1711.05101 in float64."""
    values = [[array.astype("float64") for array in group] for group in values]
    ends = [[], [], []]
    for i, (weight, gradient, first, second) in enumerate(zip(*values)):
        first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
        update = first / (1 - 0.9**5) / (np.sqrt(second / (1 - 0.99**5)) + 1e-6)
        decay = 0.01 * 0.1 * weight if i % 2 == 0 else 0
        for end, value in zip(ends, (weight - decay - 0.01 * update, first, second)):
            end.append(value)
    return ends


def check_step(shapes, threads):
    found, values = one_step(shapes, threads)
    for ours, expected in zip(found, formula(values)):
        for one, other in zip(ours, expected):
            np.testing.assert_allclose(one, other, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(np.ravel(found[3]), [0.9**6, 0.99**6] * len(shapes), rtol=1e-6)


@per_example
@given(shapes, st.integers(1, 4))
def test_a_step_is_adamws(native, shapes, threads):
    check_step(shapes, threads)


def test_a_step_of_long_tensors_is_adamws_with_the_same_bits_for_any_number_of_threads(native):
    check_step(LONG, 2)
    alone = one_step(LONG, 1)[0]
    for threads in (2, 3):
        for one, other in zip(alone, one_step(LONG, threads)[0]):
            assert all((a == b).all() for a, b in zip(one, other))


@per_example
@given(shapes, st.integers(1, 4), st.floats(0, 0.99999))
def test_an_average_moves_by_its_decay(native, shapes, threads, decay):
    averages, values = drawn(shapes, 1), drawn(shapes, 2)
    tensors = tensors_of(averages)
    with with_threads(threads):
        move_averages(zip(tensors, tensors_of(values)), decay)
    for tensor, average, value in zip(tensors, averages, values):
        expected = decay * average.astype("float64") + (1 - decay) * value
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-6, atol=1e-6)


@per_example
@given(shapes, st.integers(1, 4), st.sampled_from([1e-15, 1.0, 1e15]))
def test_a_norm_is_euclids(native, shapes, threads, factor):
    values = [array * np.float32(factor) for array in drawn(shapes, 1)]
    expected = np.sqrt(sum((value.astype("float64") ** 2).sum() for value in values))
    with with_threads(threads):
        assert norm_of(tensors_of(values)) == pytest.approx(expected, rel=1e-6)


def test_a_long_norm_loses_nothing_of_small_numbers_and_has_the_same_bits_for_any_number_of_threads(native):
    values = tensors_of([np.full([2**22 + 3], 0.1, "float32"), np.full([5], 100, "float32")])
    found = set()
    for threads in (1, 2, 3):
        with with_threads(threads):
            found.add(norm_of(values))
    (norm,) = found
    assert norm == pytest.approx(np.sqrt((2**22 + 3) * np.float64(np.float32(0.1)) ** 2 + 5e4), rel=5e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_norm_of_what_is_not_finite_is_not_finite(native, bad):
    values = drawn(LONG, 1)
    values[0][-1] = bad
    assert not np.isfinite(norm_of(tensors_of(values)))


# The optimizer that a training uses.


def trained(modes, grad_clip=None, skipped=()):
    """{name: array} of weights and optimizer state after a step for each of `modes`, of PASSL_XCIT_NATIVE."""
    paddle.seed(3)
    model = nn.Sequential(nn.Linear(7, 33), nn.GELU(), nn.Linear(33, 5))
    optimizer = NativeAdamW(
        {model[0].bias.name}, 0.9, 0.99, 1e-6, 0.1, grad_clip, learning_rate=0.01, parameters=model.parameters()
    )
    for step, mode in enumerate(modes):
        with mock.patch.dict(os.environ, {MODE: mode}):
            model[0].weight.stop_gradient = step in skipped
            (model(paddle.to_tensor(drawn([[4, 7]], step)[0])) ** 2).mean().backward()
            optimizer.step()
            optimizer.clear_grad()
    names = {parameter.name: name for name, parameter in model.named_parameters()}
    state = [(key, value) for key, value in optimizer.state_dict().items() if isinstance(value, paddle.Tensor)]
    arrays = {}
    for key, value in state:
        owner, _, kind = re.sub("_(?=moment|beta)", " ", key, count=1).partition(" ")
        arrays[f"{names[owner]} {kind}"] = value.numpy()
    return {**arrays, **{name: value.numpy() for name, value in model.state_dict().items()}}


@pytest.mark.parametrize("clip", [None, nn.ClipGradByGlobalNorm(0.01), nn.ClipGradByNorm(0.01)])
@pytest.mark.parametrize("modes", [["on"] * 5, ["on", "on", "off", "off", "on"], ["off", "on", "off", "on", "off"]])
def test_native_steps_are_paddles_and_either_goes_on_with_the_others_state(native, clip, modes):
    ours, paddles = trained(modes, clip), trained(["off"] * 5, clip)
    assert ours.keys() == paddles.keys() and len(ours) == 4 * 5
    for name, value in paddles.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_parameter_without_a_gradient_stays_and_so_do_its_moments(native):
    ours, paddles = (trained([mode] * 5, skipped=(2, 3)) for mode in ("on", "off"))
    for name, value in paddles.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_operator_is_what_a_step_uses_where_it_can(native):
    with mock.patch("passl_xcit.solver.optimizer.adamw_step", side_effect=RuntimeError("native")):
        trained(["off"] * 3)
        with pytest.raises(RuntimeError, match="native"):
            trained(["on"] * 3)


def test_only_float32_without_gaps_is_taken(native):
    tensor = paddle.ones([4, 4])
    assert applies_to([tensor]) and not applies_to([tensor, tensor.astype("float64")])
    assert not applies_to([tensor.t()]) or tensor.t().is_contiguous()
    with mock.patch.dict(os.environ, {MODE: "off"}):
        assert not applies_to([tensor])
