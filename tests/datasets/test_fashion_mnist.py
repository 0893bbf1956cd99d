"""The embedded data set: what it holds, and that a damaged copy is noticed."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from passl_xcit.datasets.demo_fashion_mnist import ARRAYS, FILE, FashionMNIST, read_arrays
from passl_xcit.utils.errors import ConfigError, DataError
from passl_xcit.utils.registry import DATASETS


@pytest.mark.parametrize(("split", "per_class"), [("train", 800), ("test", 200)])
def test_every_class_has_as_many_images(split, per_class):
    dataset = FashionMNIST(split)
    assert np.bincount(dataset.labels).tolist() == [per_class] * 10
    assert len(dataset) == len(dataset.images) == 10 * per_class
    assert len(dataset.class_names) == 10


def test_images_are_grey_and_28_pixels_wide():
    dataset = FashionMNIST("test")
    image, label = dataset[(0, 5)]
    assert isinstance(image, Image.Image) and (image.mode, image.size) == ("L", (28, 28))
    assert label == int(dataset.labels[5]) and isinstance(label, int)
    np.testing.assert_array_equal(np.asarray(image), dataset.images[5])


def test_no_image_is_in_it_twice_or_in_both_splits():
    images = [image.tobytes() for split in ("train", "test") for image in FashionMNIST(split).images]
    assert len(set(images)) == len(images) == 10_000


def test_the_first_test_image_is_the_published_one():
    """The test set of Fashion-MNIST begins with an ankle boot and a pullover."""
    dataset = FashionMNIST("test")
    assert [dataset.class_names[label] for label in dataset.labels[:2]] == ["Ankle boot", "Pullover"]


def test_reading_does_not_change_the_arrays():
    digest = hashlib.sha256(read_arrays()["test_images"].tobytes()).hexdigest()
    dataset = FashionMNIST("test", transforms=[lambda image, rng: np.asarray(image) * 0])
    dataset[(0, 0)]
    assert hashlib.sha256(dataset.images.tobytes()).hexdigest() == digest


@pytest.mark.parametrize("place", [0, 100, len(FILE.read_bytes()) // 2, -30])
def test_a_flipped_byte_is_noticed(tmp_path, place):
    content = bytearray(FILE.read_bytes())
    content[place] ^= 0x10
    damaged = tmp_path / "copy.npz"
    damaged.write_bytes(content)
    with pytest.raises(DataError, match=f"{damaged}: the embedded data set .*install the package again"):
        read_arrays(damaged)


def test_other_arrays_in_a_sound_file_are_noticed(tmp_path):
    arrays = read_arrays()
    arrays["test_labels"] = arrays["test_labels"].copy()
    arrays["test_labels"][7] ^= 1
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(DataError, match="is damaged .checksum differs.; install the package again"):
        read_arrays(tmp_path / "other.npz")


def test_a_pickle_in_the_file_is_not_run(tmp_path):
    np.savez(tmp_path / "pickled.npz", **dict.fromkeys(ARRAYS, np.array([{}], object)))
    with pytest.raises(DataError, match="cannot be read .Object arrays cannot be loaded"):
        read_arrays(tmp_path / "pickled.npz")


@pytest.mark.parametrize("content", [b"", b"no zip file", FILE.read_bytes()[:5000]])
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "copy.npz").write_bytes(content)
    with pytest.raises(DataError, match="copy.npz: the embedded data set cannot be read"):
        read_arrays(tmp_path / "copy.npz")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read .*No such file.*install the package again"):
        read_arrays(tmp_path / "missing.npz")


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"split": "val"}, "here.split: split must be 'train' or 'test', not 'val'"),
        ({"split": "Train"}, "here.split: split must be 'train' or 'test', not 'Train'"),
        ({"split": "test", "return_label": False}, "here.return_label: return_label must be true"),
    ],
)
def test_a_split_that_does_not_exist_is_refused(node, message):
    with pytest.raises(ConfigError, match=message):
        DATASETS.build({"name": "FashionMNIST", **node}, "here", seed=0)


def test_the_licence_lies_beside_the_images():
    text = (FILE.parent / "LICENSE").read_text()
    assert "MIT" in text and "Zalando" in text
