"""The metrics of an evaluation that has run, against their definitions, written as loops over plain numbers."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passl_xcit.metrics import (
    NO_PREDICTION,
    Z_95,
    brier_score,
    calibration,
    class_counts,
    confused_pairs,
    confusion_matrix,
    negative_log_likelihood,
    softmax,
    wilson_interval,
)

seeds = st.integers(0, 2**32)
shapes = st.tuples(st.integers(1, 8), st.integers(1, 12))  # N, K


def draw(shape, seed, offset=0.0):
    """Logits float32 [N, K], classes [N]."""
    rng = np.random.default_rng(seed)
    return (4 * rng.normal(size=shape) + offset).astype("float32"), rng.integers(0, shape[1], shape[0])


class TestProbabilities:
    @given(shapes, seeds, st.sampled_from([0, 1e4, -1e4]))
    def test_are_the_exponentials_over_their_sum(self, shape, seed, offset):
        logits, _ = draw(shape, seed, offset)
        for row, found in zip(logits.tolist(), softmax(logits)):
            powers = [math.exp(value - offset) for value in row]
            np.testing.assert_allclose(found, [power / math.fsum(powers) for power in powers], rtol=1e-12)

    def test_bear_large_logits(self):
        np.testing.assert_allclose(softmax(np.float32([[1e4, 0, 1e4], [-1e4, 0, 0]])), [[0.5, 0, 0.5], [0, 0.5, 0.5]])

    @given(shapes, seeds, st.sampled_from([0, 1e4, -1e4]))
    def test_nll_is_minus_the_logarithm_of_the_right_ones(self, shape, seed, offset):
        logits, targets = draw(shape, seed, offset)
        found = negative_log_likelihood(logits, targets)
        for row, target, value in zip(logits.tolist(), targets, found):
            powers = [math.exp(logit - offset) for logit in row]
            assert value == pytest.approx(math.log(math.fsum(powers)) - (row[target] - offset), abs=1e-9)

    def test_nll_is_finite_where_the_probability_is_too_small_for_a_number(self):
        assert negative_log_likelihood(np.float32([[0, 2000]]), np.array([0])).tolist() == [2000.0]

    @given(shapes, seeds)
    def test_brier_score_is_the_sum_of_squared_differences(self, shape, seed):
        logits, targets = draw(shape, seed)
        probabilities = softmax(logits)
        for row, target, value in zip(probabilities, targets, brier_score(probabilities, targets)):
            expected = math.fsum((p - (k == target)) ** 2 for k, p in enumerate(row))
            assert value == pytest.approx(expected, abs=1e-12) and -1e-12 <= value <= 2 + 1e-12


class TestWilsonInterval:
    @pytest.mark.parametrize(
        ("correct", "total", "low", "high"),
        # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
        [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
    )
    def test_has_published_bounds(self, correct, total, low, high):
        assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)

    @given(st.integers(1, 10**6), st.floats(0, 1))
    def test_ends_where_the_share_is_z_deviations_away(self, total, share):
        """What the formula solves: (share - p)^2 = z^2 p (1 - p) / n."""
        correct = round(share * total)
        low, high = wilson_interval(correct, total)
        for bound in (low, high):
            distance, deviation = correct / total - bound, math.sqrt(bound * (1 - bound) / total)
            assert abs(distance) == pytest.approx(Z_95 * deviation, abs=1e-7)
        assert 0 <= low <= correct / total <= high <= 1 and low < high

    @given(st.integers(1, 1000), st.floats(0, 1))
    def test_of_errors_is_that_of_hits_from_the_other_end(self, total, share):
        correct = round(share * total)
        low, high = wilson_interval(correct, total)
        assert wilson_interval(total - correct, total) == pytest.approx((1 - high, 1 - low), abs=1e-12)

    def test_of_more_samples_is_narrower(self):
        low, high = wilson_interval(np.array([9, 90, 900, 9000]), np.array([10, 100, 1000, 10000]))
        assert (np.diff(high - low) < 0).all()

    def test_of_no_samples_is_unknown(self):
        assert np.isnan(wilson_interval(np.array([0, 3]), np.array([0, 4]))).tolist() == [[True, False]] * 2


def ece_by_definition(confidence, correct, bins):
    total = 0.0
    for place in range(bins):
        members = [i for i, c in enumerate(confidence) if place / bins < c <= (place + 1) / bins]
        if members:
            right = sum(bool(correct[i]) for i in members) / len(members)
            sure = math.fsum(confidence[i] for i in members) / len(members)
            total += len(members) / len(confidence) * abs(right - sure)
    return total


class TestCalibration:
    @given(st.lists(st.tuples(st.floats(1e-6, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 20))
    def test_ece_is_that_of_the_definition(self, samples, bins):
        confidence, correct = map(list, zip(*samples))
        found = calibration(confidence, correct, bins)
        assert found.ece == pytest.approx(ece_by_definition(confidence, correct, bins), abs=1e-12)
        assert found.counts.sum() == len(samples) and len(found.counts) == bins
        assert 0 <= found.ece <= 1

    @given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=8))
    def test_ece_of_a_perfectly_calibrated_set_is_0(self, groups):
        """Of each group, as many samples are right as its confidence says."""
        confidence, correct = [], []
        for total, right in groups:
            right = min(total, max(1, right))
            confidence += [right / total] * total
            correct += [True] * right + [False] * (total - right)
        assert calibration(confidence, correct).ece == pytest.approx(0, abs=1e-12)

    @pytest.mark.parametrize("sure", [0.3, 0.75, 1.0])
    def test_ece_of_one_that_is_always_wrong_is_its_confidence(self, sure):
        assert calibration([sure] * 7, [False] * 7).ece == pytest.approx(sure)

    def test_a_bin_has_its_upper_edge(self):
        assert calibration([0.25, 0.2500001, 0.5, 1.0], [True] * 4, bins=4).counts.tolist() == [1, 2, 0, 1]

    def test_each_bin_has_its_own_means(self):
        found = calibration([0.6, 0.7, 0.9], [True, False, True], bins=4)
        np.testing.assert_allclose(found.confidence, [np.nan, np.nan, 0.65, 0.9])
        np.testing.assert_allclose(found.accuracy, [np.nan, np.nan, 0.5, 1.0])

    @given(seeds)
    def test_the_order_does_not_matter(self, seed):
        rng = np.random.default_rng(seed)
        confidence, correct = rng.random(50), rng.random(50) < 0.5
        order = rng.permutation(50)
        assert calibration(confidence[order], correct[order]).ece == pytest.approx(calibration(confidence, correct).ece)


@st.composite
def answers(draw):
    """(targets, predictions, K); some predictions are missing."""
    classes = draw(st.integers(1, 7))
    pairs = st.tuples(st.integers(0, classes - 1), st.integers(-1, classes - 1))
    targets, predictions = zip(*draw(st.lists(pairs, min_size=1, max_size=60)))
    return np.array(targets), np.array(predictions), classes


class TestClasses:
    @given(answers())
    def test_counts_are_those_of_a_loop(self, drawn):
        targets, predictions, classes = drawn
        found = class_counts(*drawn)
        pairs = list(zip(targets.tolist(), predictions.tolist()))
        for k in range(classes):
            assert found.total[k] == sum(t == k for t, _ in pairs)
            assert found.predicted[k] == sum(p == k for _, p in pairs)
            assert found.correct[k] == sum(t == p == k for t, p in pairs)

    @given(answers())
    def test_the_classes_together_are_the_whole(self, drawn):
        targets, predictions, _ = drawn
        found = class_counts(*drawn)
        assert found.total.sum() == len(targets)
        assert found.predicted.sum() == (predictions != NO_PREDICTION).sum()
        seen = found.total > 0
        accuracy = (targets == predictions).mean()
        assert (found.recall[seen] * found.total[seen]).sum() / len(targets) == pytest.approx(accuracy)

    @given(answers())
    def test_f1_is_the_harmonic_mean_of_precision_and_recall(self, drawn):
        found = class_counts(*drawn)
        for precision, recall, f1 in zip(found.precision, found.recall, found.f1):
            if precision > 0 and recall > 0:
                assert f1 == pytest.approx(2 / (1 / precision + 1 / recall))

    def test_what_never_occurs_is_unknown(self):
        found = class_counts(np.array([0, 0, 1]), np.array([0, 1, 1]), 4)
        assert found.recall.tolist()[:2] == [0.5, 1.0] and found.precision.tolist()[:2] == [1.0, 0.5]
        assert np.isnan([found.recall[2], found.precision[2], found.f1[2], found.f1[3]]).all()


class TestConfusions:
    @given(answers())
    def test_pairs_are_counted_and_the_most_frequent_come_first(self, drawn):
        targets, predictions, _ = drawn
        wrong = Counter((t, p) for t, p in zip(targets.tolist(), predictions.tolist()) if p not in (t, NO_PREDICTION))
        found = confused_pairs(targets, predictions).tolist()
        assert found == [[*pair, count] for pair, count in sorted(wrong.items(), key=lambda item: (-item[1], item[0]))]

    @given(answers())
    def test_the_matrix_has_a_row_for_each_class_and_the_right_ones_on_its_diagonal(self, drawn):
        targets, predictions, classes = drawn
        matrix = confusion_matrix(targets, predictions, classes)
        counted = Counter(zip(targets.tolist(), predictions.tolist()))
        assert matrix.tolist() == [[counted[row, column] for column in range(classes)] for row in range(classes)]
        found = class_counts(targets, predictions, classes)
        assert np.diag(matrix).tolist() == found.correct.tolist()
        assert matrix.sum(axis=0).tolist() == found.predicted.tolist()

    @given(answers(), st.integers(1, 9))
    def test_blocks_sum_up_the_matrix(self, drawn, blocks):
        classes = drawn[2]
        size = math.ceil(classes / blocks)
        matrix, found = confusion_matrix(*drawn), confusion_matrix(*drawn, blocks=blocks)
        assert len(found) <= blocks and found.sum() == matrix.sum()
        for row, column in np.ndindex(found.shape):
            part = matrix[row * size : (row + 1) * size, column * size : (column + 1) * size]
            assert found[row, column] == part.sum()
