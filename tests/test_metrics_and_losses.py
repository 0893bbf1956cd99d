"""Loss and accuracies against their formulas, in float64 NumPy."""

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passl_xcit.losses import cross_entropy
from passl_xcit.metrics import accuracy, topk_correct

shapes = st.tuples(st.integers(1, 6), st.integers(1, 12))  # B, K


def draw(shape, seed, offset=0.0):
    """Logits [B, K] float32, classes [B], probabilities [B, K] float32."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(shape[1]), size=shape[0]).astype("float32")
    return (3 * rng.normal(size=shape) + offset).astype("float32"), rng.integers(0, shape[1], shape[0]), probabilities


def log_softmax(logits):
    shifted = logits.astype("float64") - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def loss_of(logits, targets):
    return cross_entropy(paddle.to_tensor(logits), paddle.to_tensor(targets)).item()


@given(shapes, st.integers(0, 2**32), st.sampled_from([0, 1e4, -1e4]))
def test_cross_entropy_of_class_numbers(shape, seed, offset):
    logits, classes, _ = draw(shape, seed, offset)
    expected = -log_softmax(logits)[np.arange(shape[0]), classes].mean()
    assert loss_of(logits, classes) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@given(shapes, st.integers(0, 2**32), st.sampled_from([0, 1e4, -1e4]))
def test_cross_entropy_of_probabilities(shape, seed, offset):
    logits, _, probabilities = draw(shape, seed, offset)
    expected = -(probabilities.astype("float64") * log_softmax(logits)).sum(axis=1).mean()
    assert loss_of(logits, probabilities) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@given(shapes, st.integers(0, 2**32))
def test_a_class_number_is_a_probability_of_one(shape, seed):
    logits, classes, _ = draw(shape, seed)
    assert loss_of(logits, np.eye(shape[1], dtype="float32")[classes]) == pytest.approx(loss_of(logits, classes))


def test_its_gradient_is_softmax_minus_target():
    logits, _, probabilities = draw((4, 7), seed=1)
    tensor = paddle.to_tensor(logits, stop_gradient=False)
    cross_entropy(tensor, paddle.to_tensor(probabilities)).backward()
    expected = (np.exp(log_softmax(logits)) - probabilities) / 4
    np.testing.assert_allclose(tensor.grad.numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("soft", [False, True])
def test_logits_of_half_precision_give_a_loss_of_single_precision(dtype, soft):
    logits, classes, probabilities = draw((4, 7), seed=1)
    half = paddle.to_tensor(logits).astype(dtype)
    targets = paddle.to_tensor(probabilities if soft else classes)
    loss = cross_entropy(half, targets)
    assert loss.dtype == paddle.float32
    assert loss.item() == pytest.approx(cross_entropy(half.astype("float32"), targets).item(), rel=1e-6)


def ranks(logits, classes):
    """How many classes score higher than the true one."""
    return (logits > logits[np.arange(len(logits)), classes][:, None]).sum(axis=1)


@given(shapes, st.integers(0, 2**32))
def test_a_sample_counts_where_fewer_than_k_classes_score_higher(shape, seed):
    logits, classes, _ = draw(shape, seed)
    top1, top5, top2 = topk_correct(paddle.to_tensor(logits), paddle.to_tensor(classes), topk=(1, 5, 2))
    higher = ranks(logits, classes)
    assert [top1.item(), top5.item(), top2.item()] == [(higher < k).sum() for k in (1, 5, 2)]


@given(shapes, st.integers(0, 2**32))
def test_the_class_of_probabilities_is_the_largest(shape, seed):
    logits, _, probabilities = draw(shape, seed)
    logits, classes = paddle.to_tensor(logits), paddle.to_tensor(probabilities.argmax(axis=1))
    hard, soft = topk_correct(logits, classes), topk_correct(logits, paddle.to_tensor(probabilities))
    assert [count.item() for count in hard] == [count.item() for count in soft]


@given(shapes, st.integers(0, 2**32))
def test_accuracies_are_percentages_of_the_counts(shape, seed):
    logits, classes, _ = draw(shape, seed)
    values = accuracy(paddle.to_tensor(logits), paddle.to_tensor(classes))
    higher = ranks(logits, classes)
    assert values["acc1"].item() == pytest.approx(100 * (higher < 1).mean(), rel=1e-6)
    assert values["acc5"].item() == pytest.approx(100 * (higher < 5).mean(), rel=1e-6)
    assert values.keys() == {"acc1", "acc5"}


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_with_five_classes_or_fewer_acc5_is_100(classes):
    logits, targets, _ = draw((8, classes), seed=3)
    assert accuracy(paddle.to_tensor(logits), paddle.to_tensor(targets))["acc5"].item() == 100
