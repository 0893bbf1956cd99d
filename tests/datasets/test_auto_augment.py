"""RandAugment: operation by operation and policy by policy against timm (golden files), and its laws."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from passl_xcit.datasets.auto_augment import INCREASING_OPS, PLAIN_OPS, AutoAugment, RandPolicy
from passl_xcit.utils.errors import ConfigError
from passl_xcit.utils.registry import TRANSFORMS

OPS = {"plain": PLAIN_OPS, "increasing": INCREASING_OPS}
FILL = {"RGB": (124, 116, 104), "L": 117}
POLICY = "rand-m9-mstd0.5-inc1"


def noise(mode, height=24, width=20):
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind, name", [(kind, name) for kind, ops in OPS.items() for name in ops])
def test_an_operation_equals_that_of_timm_at_every_level(golden, mode, kind, name):
    arrays = golden("auto_augment_ops.npz")
    image, tested = Image.fromarray(arrays[f"{mode} image"]), set()
    for label, where in zip(arrays[f"{mode} labels"], arrays[f"{mode} where"]):
        label_kind, label_name, level = label.split()
        if (label_kind, label_name) != (kind, name):
            continue
        warp = {"resample": Image.Resampling.BICUBIC, "fillcolor": FILL[mode]}
        result = OPS[kind][name].apply(image, int(level), warp)
        np.testing.assert_array_equal(result, arrays[f"{mode} results"][where], label)
        tested.add(int(level))
    assert tested == ({-10, -9, -5, 0, 5, 9, 10} if OPS[kind][name].signed else {0, 5, 9, 10})


@pytest.mark.parametrize("number", range(24))
def test_a_policy_does_with_the_same_draws_what_timm_does(golden, replay, number):
    case, arrays = golden("auto_augment_policies.json")[number], golden("auto_augment_policies.npz")
    rng = replay(case["draws"])
    result = AutoAugment(case["config_str"])(Image.fromarray(arrays["image"]), rng)
    np.testing.assert_array_equal(result, arrays["results"][number], case["config_str"])
    assert rng.all_used()


@pytest.mark.parametrize(
    "text, policy",
    [
        ("rand", RandPolicy(m=10, n=2, p=0.5, mstd=0, mmax=10, inc=0)),
        (POLICY, RandPolicy(m=9, mstd=0.5, inc=1)),
        ("rand-inc0-n3-m15-mmax20-p0.25", RandPolicy(m=15, n=3, p=0.25, mmax=20)),
    ],
)
def test_a_policy_string_is_read(text, policy):
    assert RandPolicy.parse(text) == policy


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_size_and_mode_stay(mode):
    augment, rng = AutoAugment("rand-m9-mstd0.5-inc1-n15-p1"), np.random.default_rng(0)
    for _ in range(20):
        result = augment(noise(mode), rng)
        assert (result.mode, result.size) == (mode, (20, 24))


@pytest.mark.parametrize("mode, fill", [("RGB", (1, 2, 3)), ("L", 2)])
def test_pixels_from_outside_get_the_mean(mode, fill):
    augment = AutoAugment("rand-m10", mean=[1.4, 2.0, 2.6])
    warp = {"resample": augment.filter, "fillcolor": augment.fill[mode]}
    moved = INCREASING_OPS["TranslateXRel"].apply(Image.new(mode, (20, 10), "white"), 10, warp)
    assert moved.getpixel((19, 5)) == fill


def test_one_mean_value_serves_for_grey_and_colour():
    assert AutoAugment("rand", mean=[73.0]).fill == {"RGB": (73, 73, 73), "L": 73}


class CountedOps:
    """Takes the place of the 15 operations and notes which is asked for, and at which level."""

    def __init__(self, ops):
        self.calls = []
        self.ops = [op._replace(apply=self._note(number)) for number, op in enumerate(ops)]

    def _note(self, number):
        def apply(image, level, warp):
            self.calls.append((number, level))
            return image

        return apply


def run_counted(text, times=3000):
    augment = AutoAugment(text)
    counted = CountedOps(augment.ops)
    augment.ops, rng, image = counted.ops, np.random.default_rng(0), noise("L", 1, 1)
    for _ in range(times):
        augment(image, rng)
    return counted.calls


def test_the_15_operations_are_drawn_uniformly_and_applied_with_probability_p():
    calls = run_counted("rand-m9-n3-p0.4")
    counts = Counter(number for number, _ in calls)
    assert len(calls) == pytest.approx(3000 * 3 * 0.4, rel=0.05)
    assert set(counts) == set(range(15)) and min(counts.values()) > 180 and max(counts.values()) < 300


def test_levels_are_normal_around_m_and_cut_at_10_and_signed_half_the_time():
    calls = run_counted(POLICY, 5000)
    signed = {number for number, op in enumerate(INCREASING_OPS.values()) if op.signed}
    levels = np.array([abs(level) for _, level in calls])
    assert levels.max() == 10 and levels.mean() == pytest.approx(9, abs=0.03)
    assert levels[levels < 10].std() == pytest.approx(0.48, abs=0.03)
    assert np.mean([level < 0 for number, level in calls if number in signed]) == pytest.approx(0.5, abs=0.04)
    assert not any(level < 0 for number, level in calls if number not in signed)


def test_a_deviation_above_100_means_uniform_levels_from_0_to_m():
    levels = [abs(level) for _, level in run_counted("rand-m8-mstd101")]
    assert 0 < min(levels) < 0.1 and 7.9 < max(levels) <= 8 and np.mean(levels) == pytest.approx(4, abs=0.15)


def test_the_same_generator_seed_gives_the_same_image_and_another_seed_another():
    images = [np.asarray(AutoAugment("rand-p1-n4")(noise("RGB"), np.random.default_rng(seed))) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_no_draw_comes_from_a_global_generator_and_the_image_stays(global_generators_untouched):
    image, augment = noise("RGB"), AutoAugment(POLICY)
    for seed in range(30):
        augment(image, np.random.default_rng(seed))
    assert image.tobytes() == noise("RGB").tobytes()


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"config_str": ""}, "config_str is '', expected RandAugment's form, like 'rand-m9-mstd0.5-inc1'"),
        ({"config_str": "original-mstd0.5"}, "config_str is 'original-mstd0.5', expected RandAugment's form"),
        ({"config_str": "rand-m9-w0"}, r"'rand-m9-w0' has no key 'w' \('w0'\); known: m, n, p, mstd, mmax, inc"),
        ({"config_str": "rand-m9-tweights"}, "has no key 'tweights'"),
        ({"config_str": "rand--m9"}, "has no key ''"),
        ({"config_str": "rand-m9.5"}, "'m' needs a whole number after it, not '9.5'"),
        ({"config_str": "rand-inc"}, "'inc' needs a whole number after it, not ''"),
        ({"config_str": "rand-inc2"}, "config_str is 'rand-inc2', expected inc0 or inc1"),
        ({"config_str": "rand-mstd0.5.1"}, "'mstd' needs a number after it, not '0.5.1'"),
        ({"config_str": "rand-m9-m8"}, "config_str is 'rand-m9-m8', expected each key once"),
        ({"config_str": "rand-n0"}, "expected n and mmax above 0"),
        ({"config_str": "rand-p2"}, "p in config_str 'rand-p2' is 2.0, expected a number from 0 to 1"),
        ({"config_str": POLICY, "interpolation": "lanczos"}, "interpolation is 'lanczos', expected one of nearest, "),
        ({"config_str": POLICY, "img_size": 0}, "img_size is 0"),
        ({"config_str": POLICY, "mean": [1.0, 2.0]}, r"mean is \[1.0, 2.0\], expected 1 or 3 values from 0 to 255"),
        ({"config_str": POLICY, "mean": [0.485, 0.456, 0.406]}, "expected values on the 0 to 255 scale"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments, text):
    with pytest.raises(ConfigError, match=text):
        TRANSFORMS.build({"name": "AutoAugment", **arguments}, "train.transforms.2")
