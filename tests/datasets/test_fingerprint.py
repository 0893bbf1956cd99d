"""A data set's fingerprint: equal for the same samples, and for no others."""

import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from passl_xcit.datasets.dataset import ImageDataset
from passl_xcit.datasets.demo_fashion_mnist import CLASS_NAMES, FashionMNIST
from passl_xcit.datasets.imagenet import ImageNet

FILES = ("cat/1.jpg", "cat/x/2.png", "dog/3.jpg")


def folder(root, *names):
    for name in names or FILES:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"some")
    return str(root)


def listed(root, text):
    folder(root, *(line.split()[0] for line in text.splitlines()))
    (root / "list.txt").write_text(text)
    return ImageNet(str(root), list_file="list.txt").fingerprint()


def test_it_counts_samples_and_classes_and_is_plain_data(tmp_path):
    fingerprint = ImageNet(folder(tmp_path)).fingerprint()
    assert (fingerprint["samples"], fingerprint["classes"]) == (3, 2)
    assert len(bytes.fromhex(fingerprint["sha256"])) == 32
    assert json.loads(json.dumps(fingerprint)) == fingerprint


def test_the_classes_of_a_list_are_the_labels_that_occur(tmp_path):
    assert listed(tmp_path, "a.jpg 7\nb.jpg 0\nc.jpg 7\n")["classes"] == 2


def test_the_place_of_the_folder_does_not_count(tmp_path):
    first = ImageNet(folder(tmp_path / "here")).fingerprint()
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert ImageNet(str(tmp_path / "there")).fingerprint() == first
    text = "a.jpg 1\nb.jpg 0\n"
    assert listed(tmp_path / "one", text) == listed(tmp_path / "two", text)


class Listing(list):
    """What os.scandir returns, in the order of the names or against it."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __next__(self):
        if not self:
            raise StopIteration
        return self.pop(0)


def test_the_order_in_which_the_file_system_lists_does_not_count(tmp_path, monkeypatch):
    folder(tmp_path, *FILES, "cat/2.jpg", "cat/y/1.jpg", "cow/1.jpg")
    scandir, fingerprints = os.scandir, []
    for reverse in (False, True):

        def listing(path, reverse=reverse):
            with scandir(path) as entries:
                return Listing(sorted(entries, key=lambda entry: entry.name, reverse=reverse))

        monkeypatch.setattr(os, "scandir", listing)
        fingerprints.append(ImageNet(str(tmp_path)).fingerprint())
    assert fingerprints[0] == fingerprints[1]


@pytest.mark.parametrize(
    "names",
    [
        FILES[:2],
        (*FILES, "dog/4.jpg"),
        (*FILES[:2], "dog/3.jpeg"),
        (*FILES[:2], "cow/3.jpg"),
        ("cat/1.jpg", "cat/2.png", "dog/3.jpg"),
        ("cat/1.jpg", "dog/x/2.png", "dog/3.jpg"),
    ],
)
def test_another_name_class_or_number_of_images_is_another_data_set(tmp_path, names):
    first = ImageNet(folder(tmp_path / "one")).fingerprint()
    assert ImageNet(folder(tmp_path / "two", *names)).fingerprint()["sha256"] != first["sha256"]


def test_an_empty_class_is_a_class(tmp_path):
    first = ImageNet(folder(tmp_path)).fingerprint()
    (tmp_path / "zebra").mkdir()
    second = ImageNet(str(tmp_path)).fingerprint()
    assert (second["samples"], second["classes"]) == (3, 3) and second["sha256"] != first["sha256"]


@pytest.mark.parametrize("text", ["a.jpg 1\nb.jpg 1\n", "b.jpg 0\na.jpg 1\n", "a.jpg 1\nc.jpg 0\n", "a.jpg 1\n"])
def test_another_label_name_or_order_of_a_list_is_another_data_set(tmp_path, text):
    assert listed(tmp_path, text)["sha256"] != listed(tmp_path, "a.jpg 1\nb.jpg 0\n")["sha256"]


def test_names_that_are_no_text_have_a_fingerprint(tmp_path):
    name = os.fsdecode(b"\xff\xfe")
    fingerprint = ImageNet(folder(tmp_path, f"{name}/{name}.jpg")).fingerprint()
    assert (fingerprint["samples"], fingerprint["classes"]) == (1, 1)


def test_the_two_embedded_sets_differ_and_stay_what_they_are():
    train, test = (FashionMNIST(split).fingerprint() for split in ("train", "test"))
    assert (train["samples"], train["classes"], test["samples"]) == (8000, 10, 2000)
    assert train["sha256"] != test["sha256"] and FashionMNIST("test").fingerprint() == test


class Listed(ImageDataset):
    def __init__(self, pairs, class_names):
        labels = np.array([label for _, label in pairs])
        super().__init__(labels, class_names, (), (), True, 0)
        self.names = np.array([name.encode() for name, _ in pairs])

    def sample_names(self):
        return self.names


pairs = st.lists(st.tuples(st.text("ab/", min_size=1, max_size=4), st.integers(0, 3)), min_size=1, max_size=4)


@settings(deadline=None)
@given(pairs, pairs, st.sampled_from([None, CLASS_NAMES]), st.sampled_from([None, CLASS_NAMES]))
def test_two_fingerprints_are_equal_exactly_where_the_data_sets_are(one, two, names, other_names):
    fingerprints = [Listed(pairs, classes).fingerprint() for pairs, classes in ((one, names), (two, other_names))]
    assert (fingerprints[0] == fingerprints[1]) == ((one, names) == (two, other_names))


def test_a_data_set_that_names_no_samples_is_known_by_its_labels():
    def fingerprint(*labels):
        return ImageDataset(np.array(labels), None, (), (), True, 0).fingerprint()

    assert fingerprint(0, 1) == fingerprint(0, 1) != fingerprint(1, 0)
