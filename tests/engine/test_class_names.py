"""Weights know what their classes are called, and so notice data that means others by the same labels."""

import pytest
from tiny_run import tiny_config, tiny_run

from passl_xcit.engine import builder
from passl_xcit.modeling.checkpoint_formats import read_file, write_file
from passl_xcit.modeling.weights import extract_weights, load_weights
from passl_xcit.utils.errors import CheckpointError, DataError

NAMES = ["class0", "class1", "class2"]


@pytest.fixture
def weights(tmp_path):
    """The path of weights of the tiny classes, taken out of a checkpoint."""
    tiny_run(tmp_path, "epochs=1")
    extract_weights(tmp_path / "out" / "latest.pdparams", tmp_path / "weights.pdparams")
    return tmp_path / "weights.pdparams"


def rename(folder, names):
    """Let the folders class0, class1 and class2 of both splits have these names."""
    for split in ("train", "val"):
        for old in NAMES:
            (folder / split / old).rename(folder / split / f"{old}.old")
        for old, new in zip(NAMES, names):
            (folder / split / f"{old}.old").rename(folder / split / new)


def test_checkpoints_and_what_is_taken_out_of_them_have_the_names(weights, tmp_path):
    assert read_file(tmp_path / "out" / "latest.pdparams")["class_names"] == NAMES
    assert read_file(weights)["class_names"] == NAMES


def test_a_model_that_loads_them_has_the_names(weights, tmp_path):
    model = builder.build_model(tiny_config(tmp_path))
    assert model.class_names is None
    load_weights(model, weights)
    assert model.class_names == NAMES


@pytest.mark.parametrize("evaluate_only", [True, False])
def test_the_same_classes_in_another_order_are_refused(weights, evaluate_only, tmp_path):
    """Numbers added in front of the names would sort otherwise; here the file tells another order than the folders."""
    tree = read_file(weights)
    write_file(weights, {**tree, "class_names": ["class1", "class0", "class2"]})
    with pytest.raises(DataError, match="class 0 is 'class0', which the weights know as 'class1': the same classes in"):
        tiny_run(tmp_path, load=weights, evaluate_only=evaluate_only)


def test_other_classes_are_warned_of(weights, tmp_path, capsys):
    rename(tmp_path, ["ant", "bee", "cat"])
    tiny_run(tmp_path, load=weights, evaluate_only=True)
    assert "class 0 is 'ant', which the weights know as 'class0': the head was trained on" in capsys.readouterr().out


def test_a_head_that_is_not_taken_over_brings_no_names(weights, tmp_path):
    model = builder.build_model(tiny_config(tmp_path, "model.head.num_classes=5"))
    load_weights(model, weights, adapt=True)
    assert model.class_names is None


def test_names_that_are_none_are_refused(weights, tmp_path):
    write_file(weights, {**read_file(weights), "class_names": [1, 2, 3]})
    with pytest.raises(CheckpointError, match="its class_names are no list of names"):
        load_weights(builder.build_model(tiny_config(tmp_path)), weights)
