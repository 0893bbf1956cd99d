"""What --data_dir means: a folder in it for a data set of one folder a split, all of it for one that has a `split`."""

import argparse
import sys

import pytest
import yaml

from passl_xcit.utils.command_line import make_parser, overrides_of
from passl_xcit.utils.errors import ConfigError

FOLDERS = {"train": {"name": "ImageNet", "dataroot": "a"}, "val": {"name": "ImageNet", "dataroot": "b"}}
WHOLE = {"train": {"name": "CIFAR10", "split": "train"}, "val": {"name": "CIFAR10", "split": "test"}}


def dataroots(tmp_path, datasets, data_dir, override=(), **options):
    """{dotted path: value} of the overrides for a config with these data sets."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"dataloader": {split: {"dataset": node} for split, node in datasets.items()}}))
    args = argparse.Namespace(override=list(override), output_dir=None, data_dir=str(data_dir))
    return {item.path: item.value for item in overrides_of(args, config, **options)}


def test_a_data_set_of_folders_takes_train_and_val(tmp_path):
    assert dataroots(tmp_path, FOLDERS, tmp_path) == {
        "dataloader.train.dataset.dataroot": f"{tmp_path}/train",
        "dataloader.val.dataset.dataroot": f"{tmp_path}/val",
    }


@pytest.mark.parametrize("data", [".", "archive.tar.gz"])
def test_a_data_set_that_picks_its_split_takes_the_folder_or_archive_itself(tmp_path, data):
    (tmp_path / "archive.tar.gz").touch()
    place = tmp_path / data
    assert set(dataroots(tmp_path, WHOLE, place).values()) == {str(place)}
    assert list(dataroots(tmp_path, WHOLE, place, splits=("val",))) == ["dataloader.val.dataset.dataroot"]


def test_it_is_the_data_set_after_the_overrides_that_counts(tmp_path):
    override = ["dataloader.val.dataset={name: CIFAR10, split: test}"]
    paths = dataroots(tmp_path, FOLDERS, tmp_path, override)
    assert paths["dataloader.val.dataset.dataroot"] == str(tmp_path)
    assert paths["dataloader.train.dataset.dataroot"] == f"{tmp_path}/train"


@pytest.mark.parametrize("datasets", [{}, {"train": None}, {"train": "text"}, {"train": {"dataroot": "a"}}])
def test_a_config_without_data_sets_is_left_to_the_check_of_the_config(tmp_path, datasets):
    assert dataroots(tmp_path, datasets, tmp_path)["dataloader.train.dataset.dataroot"] == f"{tmp_path}/train"


@pytest.mark.parametrize(
    ("datasets", "data", "message"),
    [
        (FOLDERS, "nowhere", r"--data_dir .*nowhere: there is no such folder$"),
        (FOLDERS, "config.yaml", r"there is no such folder$"),
        (WHOLE, "nowhere", r"--data_dir .*nowhere: there is no such folder or archive$"),
    ],
)
def test_what_does_not_exist_is_refused(tmp_path, datasets, data, message):
    with pytest.raises(ConfigError, match=message):
        dataroots(tmp_path, datasets, tmp_path / data)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("tools/train.py", "python tools/train.py -c A\n-m launch tools/train.py; tools/test.py"),
        ("/usr/bin/passl-xcit-train", "passl-xcit-train -c A\n-m launch passl-xcit-train; tools/test.py"),
    ],
)
def test_the_help_names_the_command_that_was_called(command, shown, monkeypatch):
    monkeypatch.setattr(sys, "argv", [command])
    text = "python tools/train.py -c A\n-m launch tools/train.py; tools/test.py"
    assert shown in make_parser(text).format_help()
