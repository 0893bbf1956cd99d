"""What is kept of each sample, against the logits themselves."""

from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from passl_xcit.datasets.random_images import RandomImages
from passl_xcit.engine import recorder
from passl_xcit.engine.recorder import Recorder
from passl_xcit.utils.errors import CheckpointError, DataError

SAMPLES = 23


def logits_and_targets(classes):
    rng = np.random.default_rng(classes)
    return (3 * rng.normal(size=(SAMPLES, classes))).astype("float32"), np.arange(SAMPLES) % classes


def loader_of(order, classes, bad=()):
    """As much of an ImageLoader as a Recorder asks for."""
    sampler = SimpleNamespace(indices=lambda: np.array(order, dtype="int64"))
    dataset = RandomImages(num_images=SAMPLES, image_size=4, model_classes=classes)
    return SimpleNamespace(dataset=dataset, batch_sampler=sampler, bad_images=dict.fromkeys(bad, "damaged"))


def recorded(logits, targets, order, batch_size, bad=()):
    """A Recorder that was shown the samples `order` but for the bad ones, a batch at a time."""
    found = Recorder(logits.shape[1])
    shown = [index for index in order if index not in bad]
    for begin in range(0, len(shown), batch_size):
        chosen = shown[begin : begin + batch_size]
        found.add(paddle.to_tensor(logits[chosen]), paddle.to_tensor(targets[chosen]))
    return found


@pytest.mark.parametrize("batch_size", [1, 5, 50])
@pytest.mark.parametrize("classes", [2, 5, 11])
def test_records_are_what_the_logits_say(classes, batch_size):
    logits, targets = logits_and_targets(classes)
    order = np.random.default_rng(1).permutation(SAMPLES).tolist()
    records = recorded(logits, targets, order, batch_size).gather(loader_of(order, classes))
    powers = np.exp(logits.astype("float64"))
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    ranked = np.argsort(-logits, axis=1)
    kept = min(5, classes)
    assert (records.best == ranked[:, :kept]).all() and (records.targets == targets).all() and records.usable.all()
    np.testing.assert_allclose(records.probabilities, -np.sort(-probabilities, axis=1)[:, :kept], rtol=1e-6)
    np.testing.assert_allclose(records.nll, -np.log(probabilities[np.arange(SAMPLES), targets]), rtol=1e-5)
    squares = ((probabilities - np.eye(classes)[targets]) ** 2).sum(axis=1)
    np.testing.assert_allclose(records.brier, squares, rtol=1e-5, atol=1e-7)
    best_two = -np.sort(-probabilities, axis=1)[:, :2]
    np.testing.assert_allclose(records.margin, best_two[:, 0] - best_two[:, 1], rtol=1e-5, atol=1e-7)
    for k in (1, 5):
        assert (records.within(k) == [target in row[:k] for target, row in zip(targets, ranked)]).all()


def test_a_single_class_has_a_margin():
    order = list(range(SAMPLES))
    records = recorded(np.zeros([SAMPLES, 1], "float32"), np.zeros(SAMPLES, "int64"), order, 4)
    assert (records.gather(loader_of(order, 1)).margin == 1).all()


@pytest.mark.parametrize("processes", [2, 3, 25])
def test_processes_together_record_what_one_records(processes, monkeypatch):
    """Of 25 processes some have no sample; to the bit, since each number comes from one of them."""
    logits, targets = logits_and_targets(7)
    bad = (3, 8)
    order = list(range(SAMPLES))
    alone = recorded(logits, targets, order, 4, bad).gather(loader_of(order, 7, bad))
    parts = []
    monkeypatch.setattr(recorder, "sum_over_processes", lambda own: parts.append(own) or own)
    shares = [order[rank::processes] for rank in range(processes)]
    for share in shares:
        own_bad = [index for index in share if index in bad]
        recorded(logits, targets, share, 4, own_bad).gather(loader_of(share, 7, own_bad))
    total = np.sum(parts, axis=0).tolist()
    monkeypatch.setattr(recorder, "sum_over_processes", lambda own: total)
    together = recorded(logits, targets, shares[0], 4, bad).gather(loader_of(shares[0], 7, bad))
    for one, other in zip(alone, together):
        assert one.dtype == other.dtype and one.tobytes() == other.tobytes()


def test_an_image_that_cannot_be_used_has_no_prediction_and_is_never_right():
    logits, targets = logits_and_targets(7)
    order = list(range(SAMPLES))
    records = recorded(logits, targets, order, 4, bad=[5]).gather(loader_of(order, 7, bad=[5]))
    assert np.flatnonzero(~records.usable).tolist() == [5]
    assert set(records.best[5].tolist()) == {-1} and not records.within(5)[5]


def test_equal_logits_are_ranked_as_the_accuracy_ranks_them():
    logits, targets = np.zeros([SAMPLES, 9], "float32"), np.arange(SAMPLES) % 9
    from passl_xcit.metrics import topk_correct

    order = list(range(SAMPLES))
    records = recorded(logits, targets, order, 50).gather(loader_of(order, 9))
    counted = topk_correct(paddle.to_tensor(logits), paddle.to_tensor(targets))
    assert [records.within(1).sum(), records.within(5).sum()] == [count.item() for count in counted]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_no_numbers_are_refused_by_the_first_image(value):
    logits, targets = logits_and_targets(7)
    logits[[4, 9], 2] = value
    order = list(range(SAMPLES))
    with pytest.raises(
        CheckpointError, match="no finite numbers for 2 of 23 images, the first is random images: im.* 4:"
    ):
        recorded(logits, targets, order, 5).gather(loader_of(order, 7))


def test_a_sample_that_was_seen_twice_is_an_error():
    logits, targets = logits_and_targets(7)
    order = [*range(SAMPLES), 6]
    with pytest.raises(DataError, match="random images: image 6: was evaluated 2 times"):
        recorded(logits, targets, order, 5).gather(loader_of(order, 7))
