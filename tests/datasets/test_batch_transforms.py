"""Mixup and CutMix: against timm (golden files), and by the laws they obey."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passl_xcit.datasets.batch_transforms import Mixup
from passl_xcit.utils.errors import ConfigError, DataError
from passl_xcit.utils.registry import BATCH_TRANSFORMS

MODES = ["batch", "elem", "pair"]
CUTMIX = {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}


def own_colour(batch, height=12, width=15):
    """Images and targets: every pixel of image i is 10 to the power i, and its class is i."""
    powers = 10.0 ** np.arange(batch, dtype=np.float32)
    return np.tile(powers[:, None, None, None], (1, 2, height, width)), np.arange(batch)


def generator(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("number", range(16))
def test_a_batch_is_mixed_with_the_same_draws_as_timm_mixes_it(golden, replay, number):
    case, arrays = golden("transforms_mixup.json")[number], golden("transforms_mixup.npz")
    rng = replay(case["draws"])
    images, targets = Mixup(**case["arguments"])(arrays["images"], arrays["targets"], rng)
    np.testing.assert_allclose(images, arrays["mixed"][number], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(targets, arrays["soft_targets"][number], rtol=1e-5, atol=1e-6)
    assert rng.all_used()


@given(
    batch=st.integers(1, 9),
    mode=st.sampled_from(MODES),
    alphas=st.sampled_from([(0.8, 0.0), (0.0, 1.0), (0.8, 1.0), (0.05, 0.05)]),
    correct_lam=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 2**32),
)
def test_rows_of_soft_targets_sum_to_1_and_everything_is_float32(batch, mode, alphas, correct_lam, smoothing, seed):
    mixup = Mixup(*alphas, mode=mode, correct_lam=correct_lam, label_smoothing=smoothing, num_classes=10)
    images, targets = mixup(*own_colour(batch), generator(seed))
    assert (images.dtype, targets.dtype) == (np.float32, np.float32)
    assert images.shape == (batch, 2, 12, 15) and targets.shape == (batch, 10)
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    assert (targets >= 0).all()


@given(
    batch=st.integers(1, 7),
    mode=st.sampled_from(MODES),
    alphas=st.sampled_from([(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)]),
    seed=st.integers(0, 2**32),
)
def test_labels_hold_the_share_that_each_image_has_in_the_pixels(batch, mode, alphas, seed):
    images, targets = own_colour(batch)
    mixup = Mixup(*alphas, mode=mode, label_smoothing=0.0, num_classes=batch)
    mixed, soft = mixup(images, targets, generator(seed))
    # Both Mixup and CutMix keep the mean of the pixels at the shares' weighted mean of the images.
    np.testing.assert_allclose(mixed.mean(axis=(1, 2, 3)), soft @ images[:, 0, 0, 0], rtol=1e-4)


@given(st.sampled_from([None, [0.2, 0.8], [0.5, 0.5]]), st.integers(0, 2**32))
def test_cutmix_pastes_one_rectangle_of_the_partner(minmax, seed):
    images, targets = own_colour(2)
    mixed, soft = Mixup(**CUTMIX, cutmix_minmax=minmax, label_smoothing=0.0, num_classes=2)(
        images, targets, generator(seed)
    )
    pasted = mixed[0, 0] == 10
    assert ((mixed[0, 0] == 1) | pasted).all()
    rows, columns = pasted.any(axis=1), pasted.any(axis=0)
    np.testing.assert_array_equal(pasted, rows[:, None] & columns)
    assert soft[0, 1] == pytest.approx(pasted.mean(), abs=1e-6)
    if minmax:
        assert math.floor(minmax[0] * 12) <= rows.sum() <= minmax[1] * 12


def test_without_correct_lam_the_labels_keep_the_drawn_lambda():
    images, targets = own_colour(2)
    mixed, soft = Mixup(**CUTMIX, correct_lam=False, label_smoothing=0.0, num_classes=2)(images, targets, generator(3))
    rng = generator(3)
    rng.random(), rng.random()
    assert soft[0, 0] == pytest.approx(rng.beta(1.0, 1.0))
    assert soft[0, 1] != pytest.approx((mixed[0, 0] == 10).mean())


@pytest.mark.parametrize("mode", MODES)
def test_the_middle_sample_of_an_odd_batch_stays_as_it_is(mode):
    images, targets = own_colour(5)
    mixed, soft = Mixup(0.8, 1.0, mode=mode, label_smoothing=0.0, num_classes=5)(images, targets, generator(1))
    np.testing.assert_allclose(mixed[2], images[2], rtol=1e-6)
    np.testing.assert_allclose(soft[2], [0, 0, 1, 0, 0], atol=1e-6)


def test_one_lambda_serves_the_batch_two_partners_or_one_sample():
    images, targets = own_colour(6)
    lams = {}
    for mode in MODES:
        soft = Mixup(mode=mode, label_smoothing=0.0, num_classes=6)(images, targets, generator())[1]
        lams[mode] = soft[np.arange(6), targets].round(5)
    assert len(set(lams["batch"])) == 1 and len(set(lams["elem"])) == 6
    assert len(set(lams["pair"])) == 3 and list(lams["pair"]) == list(lams["pair"][::-1])


@pytest.mark.parametrize("mode", MODES)
def test_prob_0_leaves_label_smoothing_alone(mode):
    images, targets = own_colour(4)
    mixup = Mixup(mixup_alpha=0.0, prob=0.0, mode=mode, label_smoothing=0.1, num_classes=1000)
    mixed, soft = mixup(images, targets, generator())
    np.testing.assert_array_equal(mixed, images)
    np.testing.assert_allclose(soft[np.arange(4), targets], 0.9001)
    np.testing.assert_allclose(np.sort(soft, axis=1)[:, :-1], 1e-4, rtol=1e-5)


@pytest.mark.parametrize("prob, switch_prob", [(0.7, 0.5), (1.0, 0.2)])
def test_mixing_and_cutmix_happen_with_their_probabilities(prob, switch_prob):
    (images, targets), rng = own_colour(2, 8, 8), generator()
    mixup = Mixup(1.0, 1.0, prob=prob, switch_prob=switch_prob, correct_lam=False, num_classes=2)
    mixed = [mixup(images, targets, rng)[0][0, 0] for _ in range(1500)]
    blended = np.mean([(image != 1).all() and (image != 10).all() for image in mixed])
    assert blended == pytest.approx(prob * (1 - switch_prob), abs=0.04)


def test_lambda_of_mixup_is_beta_distributed():
    (images, targets), rng = own_colour(2, 1, 1), generator()
    mixup = Mixup(0.8, label_smoothing=0.0, num_classes=2)
    lams = np.array([mixup(images, targets, rng)[1][0, 0] for _ in range(4000)])
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
    assert lams.mean() == pytest.approx(0.5, abs=0.02) and lams.var() == pytest.approx(1 / 10.4, abs=0.005)


@pytest.mark.parametrize("mode", MODES)
def test_arguments_are_not_written_to_and_global_generators_not_used(mode, global_generators_untouched):
    images, targets = own_colour(4)
    images.flags.writeable = targets.flags.writeable = False
    for seed in range(10):
        Mixup(0.8, 1.0, mode=mode, num_classes=4)(images, targets, generator(seed))


def test_the_same_generator_seed_gives_the_same_batch_and_another_seed_another():
    mixup = Mixup(0.8, 1.0, num_classes=4)
    first, again, other = (mixup(*own_colour(4), generator(seed))[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("target", [-1, 10])
def test_a_target_outside_the_classes_is_refused(target):
    images, _ = own_colour(2)
    with pytest.raises(DataError, match=rf"target {target} is none of the model's 10 classes \(0 to 9\)"):
        Mixup(num_classes=10)(images, np.array([3, target]), generator())


def test_the_number_of_classes_comes_from_the_model():
    node = {"name": "Mixup", "mixup_alpha": 0.8}
    assert BATCH_TRANSFORMS.build(node, model_classes=7).num_classes == 7
    assert BATCH_TRANSFORMS.build({**node, "num_classes": 7}, model_classes=7).num_classes == 7


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"mixup_alpha": 0.0}, "mixup_alpha and cutmix_alpha are both 0.* prob: 0 for label smoothing alone"),
        ({"mixup_alpha": -1.0}, "mixup_alpha is -1.0, expected 0 or more"),
        ({"cutmix_alpha": math.inf}, "cutmix_alpha is inf, expected 0 or more"),
        ({"cutmix_minmax": [0.8, 0.2]}, r"cutmix_minmax is \[0.8, 0.2\], expected two numbers, 0 < low"),
        ({"cutmix_minmax": [0.5]}, r"cutmix_minmax is \[0.5\]"),
        ({"prob": 2.0}, "prob is 2.0, expected a number from 0 to 1"),
        ({"switch_prob": -0.5}, "switch_prob is -0.5"),
        ({"mode": "half"}, "mode is 'half', expected one of batch, elem, pair"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0, expected 0 <= label_smoothing < 1"),
        ({"num_classes": 100}, "num_classes is 100, but the model has 10 classes"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments, text):
    with pytest.raises(ConfigError, match=text):
        BATCH_TRANSFORMS.build({"name": "Mixup", **arguments}, "train.batch_transforms.0", model_classes=10)


def test_without_any_number_of_classes_there_is_no_mixup():
    with pytest.raises(ValueError, match="num_classes is not given"):
        Mixup()
    with pytest.raises(ValueError, match="num_classes is 0, expected an int above 0"):
        Mixup(num_classes=0)
