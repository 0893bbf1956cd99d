"""What the doctor says of a data set."""

import json
import os
import shutil
from pathlib import Path

import pytest
from bad_images import FILES
from cifar10_files import members, write_archive, write_folder
from PIL import Image
from tiny_run import write_images

from passl_xcit.engine import dataset_check
from passl_xcit.engine.dataset_check import MOST_LISTED, check_data
from passl_xcit.utils.errors import ConfigError


@pytest.fixture
def photos(tmp_path):
    """A data set of two splits with three classes, of 6 and 4 images."""
    for split, per_class in (("train", 6), ("val", 4)):
        write_images(tmp_path / "photos" / split, per_class)
    return tmp_path / "photos"


def verdicts(section):
    """{name: verdict} of what is not well."""
    return {finding.name: finding.verdict for finding in section.findings if finding.verdict != "ok"}


def advice(section, name):
    (finding,) = [finding for finding in section.findings if finding.name == name]
    return finding.advice


def test_a_data_set_that_is_well_has_its_images_classes_sizes_and_kinds_told(photos):
    section = check_data(photos)
    assert verdicts(section) == {}
    values = {finding.name: finding.value for finding in section.findings}
    assert values["data set"] == f"{photos}: train, val, each with a folder a class"
    assert values["train"] == "18 images, 3 classes of 6" and values["val"] == "12 images, 3 classes of 4"
    assert values["train read"] == "18 of 18 images looked at, nothing wrong"
    assert values["train pixels"] == "all 8 x 8" and values["train kinds"] == "18 PNG; 18 RGB"
    assert json.loads(json.dumps(section.data))["splits"]["val"] == {
        "images": 12,
        "read": 12,
        "classes": {"class0": 4, "class1": 4, "class2": 4},
        "formats": {"PNG": 12},
        "modes": {"RGB": 12},
        "width": [8, 8, 8],
        "height": [8, 8, 8],
        "odd": {"turned": [], "frames": [], "transparent": []},
        "bad": [],
    }


@pytest.mark.parametrize("can_fork", [True, False])
def test_every_damaged_image_is_named_with_its_reason(can_fork, photos, monkeypatch):
    monkeypatch.setattr(dataset_check, "can_fork", lambda: can_fork)
    for number, (content, _) in enumerate(FILES.values()):
        (photos / "val" / "class1" / f"{number:03}.jpg").write_bytes(content)
    section = check_data(photos)
    expected = {
        str(photos / "val" / "class1" / f"{number:03}.jpg"): verdict
        for number, (_, verdict) in enumerate(FILES.values())
        if verdict != "ok"
    }
    bad = {entry["image"]: entry["reason"] for entry in section.data["splits"]["val"]["bad"]}
    assert bad.keys() == expected.keys()
    assert all(bad[path].startswith(verdict) for path, verdict in expected.items())
    assert verdicts(section)["val read"] == "error" and "train read" not in verdicts(section)
    assert len(section.table.rows) == MOST_LISTED + 1 < len(bad)
    assert section.table.rows[0] == ["val/class1/000.jpg", "the file is empty"]
    assert section.table.rows[-1] == [f"and {len(bad) - MOST_LISTED} more", "--json has all of them"]
    assert (
        f"{len(bad)} images cannot be used, the first is {photos}/val/class1/000.jpg: the file is empty; replace"
        in (advice(section, "val read"))
    )


def test_a_limit_reads_some_images_and_looks_all_up(photos):
    train = photos / "train"
    (train / "class0" / "1.png").write_bytes(b"")
    (train / "class1" / "0.png").write_bytes(b"no image")
    limited = check_data(photos, limit=2).data["splits"]["train"]
    assert (limited["images"], limited["read"], limited["formats"]) == (18, 2, {"PNG": 2})
    assert [entry["image"] for entry in limited["bad"]] == [str(train / "class0" / "1.png")]
    assert check_data(photos, limit=100).data["splits"]["train"]["read"] == 18


def test_images_that_are_not_what_they_look_like_elsewhere_are_warnings(photos):
    folder, image = photos / "train" / "class0", Image.new("RGB", (9, 5))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "turned.jpg", exif=exif)
    exif[0x0112] = 1
    image.save(folder / "upright.jpg", exif=exif)
    image.save(folder / "pages.tiff", save_all=True, append_images=[image])
    image.convert("RGBA").save(folder / "opaque.png")
    Image.new("RGBA", (9, 5), (1, 2, 3, 4)).save(folder / "clear.png")
    image.convert("P").save(folder / "palette.png", transparency=0)
    section = check_data(photos)
    odd = {key: [Path(path).name for path in paths] for key, paths in section.data["splits"]["train"]["odd"].items()}
    assert odd == {"turned": ["turned.jpg"], "frames": ["pages.tiff"], "transparent": ["clear.png", "palette.png"]}
    assert verdicts(section) == dict.fromkeys(("train turned", "train frames", "train transparent"), "warning")
    assert "1 image turned by their EXIF orientation, which is not applied" in advice(section, "train turned")


def test_an_exif_that_is_damaged_is_nothing(photos):
    data = Image.new("RGB", (9, 5)), photos / "train" / "class0" / "exif.jpg"
    data[0].save(data[1], exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert verdicts(check_data(photos)) == {}


def test_an_empty_class_is_a_warning_and_the_smallest_and_largest_are_named(photos):
    shutil.rmtree(photos / "val" / "class2")
    (photos / "val" / "class2").mkdir()
    (photos / "val" / "class1" / "0.png").unlink()
    section = check_data(photos)
    assert verdicts(section) == {"val empty": "warning"}
    assert advice(section, "val empty") == f"{photos}/val: 1 class without an image: class2"
    assert "7 images, 3 classes of 0 (class2) to 4 (class0)" in [finding.value for finding in section.findings]


def test_class_names_that_differ_between_the_splits_are_an_error(photos):
    (photos / "val" / "class2").rename(photos / "val" / "class_2")
    section = check_data(photos)
    assert verdicts(section) == {"train, val": "error"}
    assert advice(section, "train, val").startswith("only train has class2; only val has class_2: keep a folder")


def test_a_model_of_another_number_of_classes_is_an_error(photos):
    assert verdicts(check_data(photos, num_classes=3)) == {}
    section = check_data(photos, num_classes=1000)
    assert verdicts(section) == {"train model": "error", "val model": "error"}
    assert advice(section, "val model") == "3 classes, the model has 1000: set model.head.num_classes"


@pytest.mark.parametrize("missing", ["train", "val"])
def test_a_split_that_is_not_there_is_a_warning(missing, photos):
    shutil.rmtree(photos / missing)
    assert verdicts(check_data(photos)) == {missing: "warning"}


def test_one_folder_with_a_folder_a_class_will_do(photos):
    section = check_data(photos / "train")
    assert section.data["kind"] == "one folder with a folder a class" and verdicts(section) == {}
    assert section.data["splits"]["images"]["images"] == 18


def test_a_folder_without_class_folders_is_an_error_that_says_what_was_expected(tmp_path):
    section = check_data(tmp_path)
    assert verdicts(section) == {"images": "error"}
    assert "holds no class folders" in advice(section, "images")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--data .*/no: there is no such folder or archive"):
        check_data(tmp_path / "no")


def test_cifar10_is_read_from_its_archive_and_what_it_lacks_is_a_warning(tmp_path):
    section = check_data(write_archive(tmp_path / "cifar-10-python.tar.gz", members()))
    assert section.data["kind"] == "CIFAR-10"
    assert verdicts(section) == {"train": "warning", "test": "warning", "test empty": "warning"}
    assert advice(section, "train") == "20 images in train, where CIFAR-10 has 50,000"
    assert section.data["splits"]["test"]["width"] == [32, 32, 32]


def test_cifar10_is_read_from_the_folder_that_its_archive_unpacks_to(tmp_path):
    assert check_data(write_folder(tmp_path, members())).data["kind"] == "CIFAR-10"


def test_a_damaged_archive_is_an_error(tmp_path):
    path = write_archive(tmp_path / "cifar-10-python.tar.gz", members())
    path.write_bytes(path.read_bytes()[:-20])
    assert verdicts(check_data(path)) == {"train": "error", "test": "error"}


def test_an_image_that_kills_its_reader_is_named(photos, monkeypatch):
    def die_at(path):
        return os._exit(3) if path.endswith("class1/2.png") else ["ok"]

    monkeypatch.setattr(dataset_check, "_facts", die_at)
    section = check_data(photos / "train")
    assert verdicts(section) == {"images": "error"}
    assert f"ended with exit code 3 at {photos}/train/class1/2.png" in advice(section, "images")
