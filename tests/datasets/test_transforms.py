"""Transforms of one image: against timm and torchvision (golden files), and by the laws they obey."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from passl_xcit.datasets.transforms import (
    CenterCrop,
    Normalize,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    Transpose,
)
from passl_xcit.utils.errors import ConfigError, DataError
from passl_xcit.utils.registry import TRANSFORMS

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
SIDES = st.integers(1, 60)


def coordinates(height, width):
    """An image whose pixel at row y, column x is (y + 1, x + 1, 1): where a crop comes from can be read from it."""
    y, x = np.mgrid[1 : height + 1, 1 : width + 1]
    return Image.fromarray(np.stack([y, x, np.ones_like(x)], axis=-1).astype(np.uint8))


def noise(mode, height, width):
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


def generator(seed=0):
    return np.random.default_rng(seed)


def pipeline(*transforms):
    def apply(image, rng):
        for transform in transforms:
            image = transform(image, rng)
        return image

    return apply


TRAIN = pipeline(
    RandomResizedCrop(16, interpolation="bicubic"),
    RandomHorizontalFlip(),
    RandomCrop(12, padding=2),
    Transpose(),
    Normalize(MEAN, STD),
    RandomErasing(0.9, mode="pixel", max_count=3),
)


# Against timm and torchvision, to the pixel


@pytest.mark.parametrize(
    "case", ["15 nearest", "15 bilinear", "15 bicubic", "15 lanczos", "15 box", "15 hamming", "27 bicubic"]
)
def test_resize_by_the_short_side_equals_torchvision(golden, case):
    arrays, (size, interpolation) = golden("transforms_resize.npz"), case.split()
    resized = Resize(int(size), interpolation)(Image.fromarray(arrays["image"]), None)
    np.testing.assert_array_equal(resized, arrays[case])


def test_resize_of_a_tall_image_and_to_height_and_width_equals_torchvision(golden):
    arrays = golden("transforms_resize.npz")
    image = Image.fromarray(arrays["image"])
    tall = image.transpose(Image.Transpose.TRANSPOSE)
    np.testing.assert_array_equal(Resize(15, "box")(tall, None), arrays["tall 15 box"])
    np.testing.assert_array_equal(Resize([13, 20], "bicubic")(image, None), arrays["[13, 20] bicubic"])


def test_the_evaluation_transforms_equal_those_of_timm_with_crop_ratio_1(golden):
    arrays = golden("transforms_resize.npz")
    evaluate = pipeline(Resize(15, "bicubic"), CenterCrop(15), Transpose(), Normalize(MEAN, STD))
    pixels = evaluate(Image.fromarray(arrays["image"]), None)
    np.testing.assert_allclose(pixels, arrays["evaluation 15"], atol=1e-5)


def test_center_crop_cuts_and_pads_where_torchvision_does(golden):
    for case in golden("transforms_center_crop.json"):
        height, width = case["size"]
        crop = np.asarray(CenterCrop(case["size"])(coordinates(*case["image"]), None)).astype(int)
        y, x = np.mgrid[:height, :width]
        y, x = y + case["top"], x + case["left"]
        inside = (y >= 0) & (y < case["image"][0]) & (x >= 0) & (x < case["image"][1])
        np.testing.assert_array_equal(crop[..., 0], np.where(inside, y + 1, 0), str(case))
        np.testing.assert_array_equal(crop[..., 1], np.where(inside, x + 1, 0), str(case))


def test_random_resized_crop_draws_the_boxes_that_timm_draws(golden, replay):
    for case in golden("transforms_random_resized_crop.json"):
        rng = replay(case["draws"])
        crop = RandomResizedCrop(8, case["scale"], case["ratio"])
        assert list(crop.draw_box(*case["image"], rng)) == case["box"], case["image"]
        assert rng.all_used()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_random_resized_crop_gives_the_pixels_that_timm_gives(golden, replay, interpolation):
    arrays = golden("transforms_random_resized_crop.npz")
    rng = replay(json.loads(str(arrays["draws"])))
    crop = RandomResizedCrop(16, interpolation=interpolation)(Image.fromarray(arrays["image"]), rng)
    np.testing.assert_array_equal(crop, arrays[interpolation])


def test_random_erasing_erases_the_boxes_that_timm_erases(golden, replay):
    for case in golden("transforms_random_erasing.json"):
        rng = replay(case["draws"])
        image = np.ones((2, *case["image"]), np.float32)
        erased = RandomErasing(**case["arguments"])(image, rng)
        expected = image.copy()
        for top, left, height, width in case["boxes"]:
            expected[:, top : top + height, left : left + width] = 0
        np.testing.assert_array_equal(erased, expected)
        assert (erased[0] == 0).sum() == case["erased_pixels"] and rng.all_used()


# Laws of the sizes


@given(SIDES, SIDES, SIDES)
def test_resize_makes_the_short_side_exact_and_keeps_the_shape(height, width, size):
    resized = Resize(size)(Image.new("L", (width, height)), None)
    assert min(resized.size) == size
    assert 0 <= max(height, width) * size / min(height, width) - max(resized.size) < 1


@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(["RGB", "L"]))
def test_crops_have_the_size_that_was_asked_for(height, width, crop_height, crop_width, mode):
    image, size = Image.new(mode, (width, height)), [crop_height, crop_width]
    for crop in (CenterCrop(size), RandomResizedCrop(size), Resize(size), RandomCrop(size, padding=30)):
        cropped = crop(image, generator())
        assert (cropped.height, cropped.width, cropped.mode) == (crop_height, crop_width, mode)


@given(SIDES, SIDES, st.integers(0, 2**32))
def test_the_box_of_random_resized_crop_lies_in_the_image(height, width, seed):
    top, left, box_height, box_width = RandomResizedCrop(8).draw_box(height, width, generator(seed))
    assert 0 <= top <= top + box_height <= height and 0 <= left <= left + box_width <= width
    assert box_height > 0 and box_width > 0


def test_random_resized_crop_keeps_to_scale_and_ratio_and_reaches_their_ends():
    crop, rng = RandomResizedCrop(8, scale=[0.2, 0.5], ratio=[0.5, 2.0]), generator()
    boxes = np.array([crop.draw_box(1000, 1000, rng) for _ in range(2000)])
    areas, ratios = boxes[:, 2] * boxes[:, 3] / 1e6, boxes[:, 3] / boxes[:, 2]
    assert 0.199 < areas.min() < 0.205 and 0.495 < areas.max() < 0.501
    assert 0.498 < ratios.min() < 0.51 and 1.96 < ratios.max() < 2.01
    assert areas.mean() == pytest.approx(0.35, abs=0.01)
    assert np.log(ratios).mean() == pytest.approx(0, abs=0.03)


# Random crops, flips and erasing


def test_random_crop_takes_every_window_of_the_image_equally_often():
    crop, rng, image = RandomCrop([2, 3]), generator(), coordinates(5, 4)
    corners = Counter()
    for _ in range(1600):
        window = np.asarray(crop(image, rng))
        top, left = window[0, 0, :2] - 1
        np.testing.assert_array_equal(window, np.asarray(image)[top : top + 2, left : left + 3])
        corners[top, left] += 1
    assert set(corners) == {(y, x) for y in range(4) for x in range(2)} and min(corners.values()) > 150


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_random_crop_pads_all_four_sides_with_the_fill(mode):
    image = noise(mode, 3, 4)
    padded = np.asarray(RandomCrop([7, 8], padding=2, fill=200)(image, generator()))
    border = [(2, 2), (2, 2), (0, 0)][: padded.ndim]
    np.testing.assert_array_equal(padded, np.pad(np.asarray(image), border, constant_values=200))


def test_random_crop_of_too_small_an_image_says_both_sizes():
    with pytest.raises(DataError, match="RandomCrop of 9x9 from an image of 7x8, padding included"):
        RandomCrop(9, padding=1)(coordinates(5, 6), generator())


@pytest.mark.parametrize("prob", [0.0, 0.3, 1.0])
def test_a_flip_mirrors_columns_with_its_probability(prob):
    image, rng = coordinates(3, 4), generator()
    mirrored = np.asarray(image)[:, ::-1]
    flips = [np.array_equal(RandomHorizontalFlip(prob)(image, rng), mirrored) for _ in range(1000)]
    assert np.mean(flips) == pytest.approx(prob, abs=0.05 if 0 < prob < 1 else 0)


@pytest.mark.parametrize("prob", [0.0, 0.25, 1.0])
def test_random_erasing_touches_images_with_its_probability(prob):
    erase, rng = RandomErasing(prob), generator()
    image = np.ones((1, 32, 32), np.float32)
    touched = [not np.array_equal(erase(image, rng), image) for _ in range(1000)]
    assert np.mean(touched) == pytest.approx(prob, abs=0.04 if 0 < prob < 1 else 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_each_mode_of_random_erasing_fills_as_it_says(channels):
    image = np.full((channels, 64, 64), 9, np.float32)
    filled = {}
    for mode in ("const", "rand", "pixel"):
        erased = RandomErasing(1.0, min_area=0.3, mode=mode)(image, generator())
        assert erased.dtype == np.float32 and erased.shape == image.shape
        filled[mode] = erased[erased != 9].reshape(channels, -1)
    assert not filled["const"].any()
    assert all(len(np.unique(channel)) == 1 for channel in filled["rand"])
    assert len(np.unique(filled["rand"])) == channels
    assert np.unique(filled["pixel"]).size == filled["pixel"].size
    assert filled["pixel"].mean() == pytest.approx(0, abs=0.1) and filled["pixel"].std() == pytest.approx(1, abs=0.1)


def test_the_number_of_erased_boxes_is_uniform_between_min_count_and_max_count():
    erase, rng = RandomErasing(1.0, min_count=2, max_count=4), generator()
    counts = Counter(len(list(erase.draw_boxes(64, 64, rng))) for _ in range(900))
    assert set(counts) == {2, 3, 4} and min(counts.values()) > 250


@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 2**32))
def test_an_erased_box_spans_neither_the_whole_height_nor_the_whole_width(height, width, seed):
    erase = RandomErasing(1.0, min_area=0.1, max_area=1.0, min_count=3)
    for top, left, box_height, box_width in erase.draw_boxes(height, width, generator(seed)):
        assert 0 <= top <= height - box_height and 0 <= left <= width - box_width
        assert box_height < height and box_width < width


def test_random_erasing_leaves_the_given_array_alone():
    image = np.ones((3, 8, 8), np.float32)
    RandomErasing(1.0, min_area=0.3)(image, generator())
    assert (image == 1).all()


# Arrays


@pytest.mark.parametrize("mode, channels", [("RGB", 3), ("L", 1)])
def test_transpose_makes_a_contiguous_chw_uint8_array(mode, channels):
    image = noise(mode, 5, 7)
    array = Transpose()(image, None)
    assert array.dtype == np.uint8 and array.shape == (channels, 5, 7) and array.flags.c_contiguous
    np.testing.assert_array_equal(np.moveaxis(array, 0, -1).squeeze(), np.asarray(image))


def test_normalize_subtracts_mean_and_divides_by_std_in_float32():
    image = np.array([[[0, 255]], [[10, 20]]], np.uint8)
    normalized = Normalize([100.0, 10.0], [50.0, 4.0])(image, None)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized, [[[-2, 3.1]], [[0, 2.5]]], rtol=1e-6)


def test_normalize_refuses_another_number_of_channels():
    with pytest.raises(DataError, match="Normalize has 3 mean values, but the image has 1 channels"):
        Normalize(MEAN, STD)(np.zeros((1, 4, 4), np.uint8), None)


@pytest.mark.parametrize(
    "transforms, text",
    [
        ([Transpose(), Resize(4)], "Resize takes a PIL image: put it before Transpose"),
        ([Normalize(MEAN, STD)], r"Normalize takes an array \[C, H, W\]: put it after Transpose"),
        ([RandomErasing()], r"RandomErasing takes an array \[C, H, W\]: put it after Normalize"),
        ([Transpose(), RandomErasing()], "RandomErasing .* put it after Normalize"),
    ],
)
def test_transforms_in_a_wrong_order_say_where_they_belong(transforms, text):
    with pytest.raises(ConfigError, match=text):
        pipeline(*transforms)(coordinates(4, 4), generator())


def test_an_image_of_another_mode_is_refused():
    with pytest.raises(DataError, match="CenterCrop takes an RGB or L image, not RGBA"):
        CenterCrop(2)(Image.new("RGBA", (4, 4)), None)


# Randomness


def test_the_same_generator_seed_gives_the_same_sample_and_another_seed_another():
    image = noise("RGB", 20, 30)
    first, again, other = (TRAIN(image, generator(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_no_transform_draws_from_a_global_generator(global_generators_untouched):
    for seed in range(20):
        assert TRAIN(noise("RGB", 20, 30), generator(seed)).dtype == np.float32


# Arguments


@pytest.mark.parametrize(
    "name, arguments, text",
    [
        ("Resize", {"size": 0}, "size is 0, expected an int above 0"),
        ("Resize", {"size": [8, 8, 8]}, r"size is \[8, 8, 8\], expected .* \[height, width\]"),
        (
            "Resize",
            {"size": 8, "interpolation": "cubic"},
            "interpolation is 'cubic', expected one of nearest, bilinear",
        ),
        ("CenterCrop", {"size": [8, -1]}, r"size is \[8, -1\], expected"),
        ("RandomCrop", {"size": 8, "padding": -1}, "padding is -1, expected a number of pixels"),
        ("RandomCrop", {"size": 8, "fill": 256}, "fill is 256, expected a pixel value from 0 to 255"),
        ("RandomResizedCrop", {"size": 0}, "size is 0"),
        ("RandomResizedCrop", {"size": 8, "scale": [1, 0.1]}, r"scale is \[1, 0.1\], expected two numbers, 0 < low"),
        ("RandomResizedCrop", {"size": 8, "scale": [0.5, 1.5]}, "low <= high <= 1"),
        ("RandomResizedCrop", {"size": 8, "ratio": [0, 1]}, r"ratio is \[0, 1\], expected"),
        ("RandomResizedCrop", {"size": 8, "interpolation": "linear"}, "interpolation is 'linear'"),
        ("RandomHorizontalFlip", {"prob": 1.5}, "prob is 1.5, expected a number from 0 to 1"),
        ("RandomHorizontalFlip", {"prob": math.nan}, "prob is nan"),
        ("Transpose", {"order": [2, 0, 0]}, r"order is \[2, 0, 0\], expected 0, 1 and 2 in some order"),
        ("Normalize", {"mean": MEAN, "std": [1.0]}, r"std is \[1.0\], expected as many values as mean"),
        ("Normalize", {"mean": [0], "std": [0]}, r"std is \[0\], expected values above 0"),
        ("RandomErasing", {"prob": -1}, "prob is -1"),
        ("RandomErasing", {"min_area": 0.5}, r"min_area, max_area is \(0.5, 0.333.*\), expected two numbers"),
        ("RandomErasing", {"min_aspect": 0}, r"min_aspect, max_aspect is \(0, None\)"),
        ("RandomErasing", {"min_aspect": 2, "max_aspect": 1}, r"min_aspect, max_aspect is \(2, 1\)"),
        ("RandomErasing", {"max_count": 0}, r"min_count, max_count is \(1, 0\)"),
        ("RandomErasing", {"mode": "noise"}, "mode is 'noise', expected one of const, rand, pixel"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(name, arguments, text):
    with pytest.raises(ConfigError, match=f"train.transforms.0[.\\w]*: .*{text}"):
        TRANSFORMS.build({"name": name, **arguments}, "train.transforms.0")
