"""CIFAR-10 in its four forms, and that damaged or hostile archives end in one line without anything being run.

The archives are made by cifar10_files.py.
"""

import gzip
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from cifar10_files import (
    BIN,
    PER_BATCH,
    PY,
    labels_of,
    members,
    pixels_of,
    python2_batch,
    python3_batch,
    records,
    short,
    write_archive,
    write_folder,
    write_images,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pickle_assembler import DANGEROUS_CALLS, call, named, program, text
from PIL import Image

from passl_xcit.datasets import cifar10
from passl_xcit.datasets.cifar10 import BATCHES, CIFAR10, CLASS_NAMES
from passl_xcit.utils.errors import ConfigError, DataError
from passl_xcit.utils.registry import DATASETS

SOURCES = {
    "python archive": lambda path: write_archive(path / "cifar-10-python.tar.gz", members()),
    "python 3 archive": lambda path: write_archive(path / "a.tar.gz", members(write=python3_batch)),
    "binary archive": lambda path: write_archive(path / "cifar-10-binary.tar.gz", members(BIN, records)),
    "unpacked": lambda path: write_folder(path, members()) / PY,
    "unpacked binary": lambda path: write_folder(path, members(BIN, records)) / BIN,
    "around the unpacked": lambda path: write_folder(path, members()),
}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_form_holds_the_same_images_in_the_same_order(tmp_path, source, split):
    dataset = CIFAR10(str(SOURCES[source](tmp_path)), split)
    expected = np.concatenate([pixels_of(name) for name in BATCHES[split]])
    assert dataset.labels.tolist() == sum((labels_of(name) for name in BATCHES[split]), [])
    assert dataset.class_names == CLASS_NAMES and len(dataset) == len(expected)
    for index, row in enumerate(expected):
        image, label = dataset[(0, index)]
        assert (image.mode, image.size, label) == ("RGB", (32, 32), dataset.labels[index])
        # Row-major planes of red, green and blue, as the page of the data set says.
        np.testing.assert_array_equal(np.asarray(image)[:, :, 2], row[2048:].reshape(32, 32))
        assert image.getpixel((31, 0)) == (row[31], row[1024 + 31], row[2048 + 31])


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_folder_of_images_is_read_class_by_class(tmp_path, split):
    dataset = CIFAR10(str(write_images(tmp_path)), split)
    rows = np.concatenate([pixels_of(name) for name in BATCHES[split]])
    labels = np.array(sum((labels_of(name) for name in BATCHES[split]), []))
    order = np.argsort(labels, kind="stable")
    np.testing.assert_array_equal(dataset.labels, labels[order])
    np.testing.assert_array_equal(dataset.images, rows[order].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    assert dataset.class_names == CLASS_NAMES


def test_an_image_of_another_size_is_named(tmp_path):
    Image.new("RGB", (32, 28)).save(write_images(tmp_path) / "test" / "cat" / "wide.png")
    with pytest.raises(DataError, match=r"cat/wide.png: 32 x 28 pixels; CIFAR-10 has 32 x 32"):
        CIFAR10(str(tmp_path), "test")


def test_other_members_of_an_archive_are_passed_over(tmp_path):
    link = tarfile.TarInfo("../../evil")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    others = {f"{PY}/readme.html": b"<html>", f"{PY}/batches.meta": b"no pickle", "/etc/data_batch_1": b"x", "l": link}
    others["../data_batch_1"] = b"x"
    before = set(tmp_path.parent.rglob("*"))
    path = write_archive(tmp_path / "a.tar.gz", {**others, **members()})
    assert len(CIFAR10(str(path), "train")) == 5 * PER_BATCH
    assert set(tmp_path.parent.rglob("*")) - before == {path}  # nothing is unpacked


def refused(root, split="train"):
    """The one line that the DataError says."""
    with pytest.raises(DataError) as caught:
        CIFAR10(str(root), split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("module", "name", "argument"), DANGEROUS_CALLS)
def test_nothing_that_a_batch_names_is_called(tmp_path, module, name, argument):
    made = tmp_path / "made"
    hostile = program(call(named(module, name), text(argument.format(str(made)))), protocol=2)
    path = write_archive(tmp_path / "a.tar.gz", {**members(), f"{PY}/data_batch_3": hostile})
    assert f"a.tar.gz: {PY}/data_batch_3: asks for" in refused(path)
    assert not made.exists()


def test_what_weight_files_may_name_a_batch_may_not(tmp_path):
    files = {**members(), f"{PY}/test_batch": program(call(named("collections", "OrderedDict")), protocol=2)}
    assert "asks for 'collections.OrderedDict', which is not plain data" in refused(
        write_archive(tmp_path / "a.tar.gz", files), "test"
    )


DATA, LABELS = pixels_of("test_batch"), labels_of("test_batch")
WRONG_BATCHES = {
    "a list": (pickle.dumps([1, 2], 2), "expected a dict with 'data' and 'labels'"),
    "without labels": (pickle.dumps({b"data": DATA}, 2), "expected a dict with 'data' and 'labels'"),
    "narrow data": (python3_batch(DATA[:, :3071].copy(), LABELS), r"'data' must be uint8 of shape \[N, 3072\]"),
    "float data": (python3_batch(DATA.astype("f4"), LABELS), "'data' must be uint8"),
    "one axis": (python3_batch(DATA.reshape(-1).copy(), LABELS), "'data' must be uint8"),
    "no images": (python2_batch(DATA[:0], []), "'data' must be uint8"),
    "data as text": (pickle.dumps({b"data": "x", b"labels": LABELS}, 2), "'data' must be uint8"),
    "a label too few": (python3_batch(DATA, LABELS[1:]), "'labels' must be a list of 4 whole numbers"),
    "a label as text": (python3_batch(DATA, [*LABELS[1:], "cat"]), "'labels' must be a list of 4 whole numbers"),
    "a label of 10": (python3_batch(DATA, [*LABELS[1:], 10]), "label 10 is out of range: .* classes 0 to 9"),
    "a label of -1": (python3_batch(DATA, [-1, *LABELS[1:]]), "label -1 is out of range"),
    "half a pickle": (python2_batch(DATA, LABELS)[:5000], "is cut short"),
    "a byte more": (python2_batch(DATA, LABELS) + b"x", "has 1 bytes after its end"),
    "an empty file": (b"", "is cut short"),
    "other text": (b"<html>not found</html>", "is not a pickle"),
    "keys twice": (b"\x80\x02}(" + (short("data") + b"N") * 2 + b"u.", "has the key 'data' twice"),
    "a shape too large": (
        python2_batch(DATA, LABELS).replace(b"M\x04\x00M\x00\x0c", b"M\x05\x00M\x00\x0c"),
        "has an array of shape",
    ),
}


@pytest.mark.parametrize("case", WRONG_BATCHES)
def test_a_batch_that_is_not_one_is_refused(tmp_path, case):
    content, message = WRONG_BATCHES[case]
    path = write_archive(tmp_path / "a.tar.gz", {**members(), f"{PY}/test_batch": content})
    with pytest.raises(DataError, match=rf"a.tar.gz: {PY}/test_batch: .*{message}"):
        CIFAR10(str(path), "test")
    assert len(CIFAR10(str(path), "train")) == 5 * PER_BATCH


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes are no whole number of records of 3073"),
        (records(DATA, LABELS)[:-1], "12291 bytes are no whole number of records of 3073"),
        (records(DATA, [0, 1, 2, 200]), "label 200 is out of range"),
    ],
)
def test_wrong_records_are_refused(tmp_path, content, message):
    files = {**members(BIN, records), f"{BIN}/test_batch.bin": content}
    assert f"test_batch.bin: {message}" in refused(write_archive(tmp_path / "a.tar.gz", files), "test")


@pytest.mark.parametrize("name", BATCHES["train"])
def test_a_missing_batch_is_named(tmp_path, name):
    files = members()
    del files[f"{PY}/{name}"]
    archive = write_archive(tmp_path / "a.tar.gz", files)
    assert refused(archive) == f"{archive}: {PY}/{name} is missing; download or unpack it again"
    assert f"{PY}/{name} is missing" in refused(write_folder(tmp_path, files))


def test_two_batches_of_one_name_are_refused(tmp_path):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for content in (members()[f"{PY}/test_batch"],) * 2:
            info = tarfile.TarInfo(f"{PY}/test_batch")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert "test_batch: is a link, or there twice" in refused(path, "test")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_batch_that_is_no_file_is_refused(tmp_path, kind):
    info = tarfile.TarInfo(f"{PY}/test_batch")
    info.type, info.linkname = kind, "/etc/passwd"
    path = write_archive(tmp_path / "a.tar.gz", {**members(), f"{PY}/test_batch": info})
    assert "test_batch: is a link, or there twice" in refused(path, "test")


def test_an_archive_that_unpacks_to_any_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "MAX_BYTES", 100_000)
    path = write_archive(tmp_path / "a.tar.gz", {"zeros": bytes(10_000_000), **members()})
    assert os.path.getsize(path) < 200_000
    assert "unpacks to more than 100,000 bytes: this is not CIFAR-10" in refused(path)
    large = write_folder(tmp_path, {"test_batch": bytes(100_001)})
    assert "test_batch: not a file of at most 100,000 bytes" in refused(large, "test")


@pytest.mark.parametrize("kept", [0, 1, 30, 1000, 0.5, 0.9, -9])
def test_a_truncated_archive_is_refused(tmp_path, kept):
    path = SOURCES["python archive"](tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    assert str(path) in refused(path)


def test_a_changed_byte_is_noticed_by_the_checksum(tmp_path):
    path = SOURCES["binary archive"](tmp_path)
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    assert "the archive cannot be read (CRC check failed" in refused(path)


@pytest.mark.parametrize("content", [b"", b"no archive", gzip.compress(b"no tar"), gzip.compress(bytes(2000))])
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "a.tar.gz"
    path.write_bytes(content)
    assert "the archive cannot be read" in refused(path) or "no CIFAR-10 there" in refused(path)


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_changed_tar_is_read_or_refused_in_one_line(tmp_path, changes):
    content = bytearray(gzip.decompress(write_archive(tmp_path / "a.tar.gz", {"a": b"", **members()}).read_bytes()))
    for place, value in changes:
        content[place % 1536 if value % 2 else place % len(content)] = value  # every second one in the headers
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(bytes(content), 1))
    try:
        CIFAR10(str(tmp_path / "b.tar.gz"), "train")
    except DataError as error:
        assert "\n" not in str(error)


def test_a_folder_without_cifar10_is_refused(tmp_path):
    assert "no CIFAR-10 there: expected cifar-10-python.tar.gz" in refused(tmp_path)


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    assert "nowhere: no such file or folder (dataroot); give CIFAR-10's archive or" in refused(tmp_path / "nowhere")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "test_batch")
    assert "test_batch: not a file" in refused(tmp_path, "test")


def test_fewer_images_than_the_data_set_has_are_said(tmp_path, caplog):
    path = SOURCES["python archive"](tmp_path)
    with caplog.at_level("WARNING"):
        CIFAR10(str(path), "train")
    assert f"{path} (train): 20 images, where CIFAR-10 has 50,000" in caplog.text


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"split": "val"}, "here.split: split must be 'train' or 'test', not 'val'"),
        ({"split": "test", "return_label": False}, "here.return_label: return_label must be true"),
    ],
)
def test_a_wrong_node_is_refused(tmp_path, node, message):
    with pytest.raises(ConfigError, match=message):
        DATASETS.build({"name": "CIFAR10", "dataroot": str(SOURCES["unpacked"](tmp_path)), **node}, "here", seed=0)
