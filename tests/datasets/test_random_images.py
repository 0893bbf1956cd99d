"""Images of noise."""

import numpy as np
import pytest

from passl_xcit.datasets.random_images import RandomImages


def test_they_are_the_same_for_the_same_seed_and_differ_from_one_another():
    first, again, other = (RandomImages(5, 8, seed=seed, model_classes=3) for seed in (1, 1, 2))
    arrays = [np.asarray(first.load(index)) for index in range(5)]
    assert all(np.array_equal(array, np.asarray(again.load(index))) for index, array in enumerate(arrays))
    assert not any(np.array_equal(array, np.asarray(other.load(index))) for index, array in enumerate(arrays))
    assert len({array.tobytes() for array in arrays}) == 5 and arrays[0].shape == (8, 8, 3)
    assert list(first.labels) == [0, 1, 2, 0, 1]


def test_they_can_be_grey():
    assert RandomImages(1, 8, channels=1).load(0).mode == "L"


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"num_images": 0}, "num_images 0 and image_size 256 must be at least 1"),
        ({"image_size": 0}, "num_images 1000 and image_size 0 must be at least 1"),
        ({"channels": 4}, "channels must be 1 or 3, not 4"),
    ],
)
def test_what_cannot_be_is_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        RandomImages(**arguments)
