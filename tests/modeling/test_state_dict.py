"""Which entries of a file are weights: wrappers, moving averages, bfloat16, and what is refused."""

import numpy as np
import pytest

from passl_xcit.modeling.checkpoint_formats import write_file
from passl_xcit.modeling.state_dict import read_checkpoint, state_dict_of
from passl_xcit.utils.errors import CheckpointError

WEIGHTS = {"w": np.arange(3, dtype="float32"), "b": np.ones((2, 2))}
AVERAGES = {"w": np.full(3, 7, "float32"), "b": np.zeros((2, 2))}


def same(have, want):
    return list(have) == list(want) and all(np.array_equal(have[name], want[name]) for name in want)


@pytest.mark.parametrize(
    "tree",
    [
        WEIGHTS,
        {"model": WEIGHTS, "epoch": 3, "args": {"lr": 0.1}},
        {"state_dict": WEIGHTS, "meta": {"classes": ["cat"]}},
        {"model": {"state_dict": WEIGHTS}},
        {"state_dict": {"model": WEIGHTS}},
        {"model": WEIGHTS, "model_ema": AVERAGES},
        {"state_dict": WEIGHTS, "state_dict_ema": AVERAGES},
        {**WEIGHTS, **{f"ema.{name}": array for name, array in AVERAGES.items()}},
        {f"ema.{name}": array for name, array in WEIGHTS.items()},
        {**WEIGHTS, "maths": {"act": "gelu_tanh"}, "num_batches_tracked": {"x": np.array(3)}},
    ],
)
def test_weights_are_found_in_their_wrappers(tree):
    assert same(state_dict_of(tree, "f"), WEIGHTS)


@pytest.mark.parametrize(
    "tree",
    [
        {"model": WEIGHTS, "model_ema": AVERAGES},
        {"state_dict": WEIGHTS, "state_dict_ema": AVERAGES},
        {"model": WEIGHTS, "model_ema": {"state_dict": AVERAGES}},
        {**WEIGHTS, **{f"ema.{name}": array for name, array in AVERAGES.items()}},
    ],
)
def test_moving_averages_are_taken_when_asked_for(tree):
    assert same(state_dict_of(tree, "f", ema=True), AVERAGES)


@pytest.mark.parametrize("tree", [WEIGHTS, {"model": WEIGHTS}, {"state_dict": {}}, {}, {"model": None}])
def test_moving_averages_that_are_not_there_are_not_replaced_by_the_weights(tree):
    with pytest.raises(CheckpointError, match=r"^f: holds no moving averages \(EMA\) of weights; take the weights"):
        state_dict_of(tree, "f", ema=True)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2), (0, 3)])
def test_bfloat16_comes_as_float32_of_the_same_value(shape):
    values = np.array([1.5, -2.0, 0.0, 3e38], "float32").view("uint32") >> 16
    array = np.resize(values, shape).astype("uint16")
    found = state_dict_of({"w": array}, "f")["w"]
    assert found.dtype == np.float32 and found.shape == shape
    np.testing.assert_array_equal(found.view("uint32").ravel() >> 16, array.ravel())


def test_an_array_called_model_is_a_weight():
    assert list(state_dict_of({"model": np.ones(2)}, "f")) == ["model"]


def read(tmp_path, tree):
    write_file(tmp_path / "f.pdparams", tree)
    return read_checkpoint(tmp_path / "f.pdparams")


def test_read_checkpoint_gives_the_weights_under_the_files_own_names(tmp_path):
    tree = {"epoch": 3, "state_dict": {"module.w": WEIGHTS["w"]}, "optimizer": {"m": np.zeros(2)}}
    assert same(read(tmp_path, tree), {"module.w": WEIGHTS["w"]})


def test_read_checkpoint_gives_all_arrays_and_numbers_of_an_optimizer_file(tmp_path):
    tree = {"w_moment1_0": WEIGHTS["w"], "LR_Scheduler": {"last_epoch": 3, "last_lr": 0.5}, "master_weights": WEIGHTS}
    found = read(tmp_path, {**tree, "name": "AdamW", "none": None, "list": [1], "huge": 2**80})
    assert list(found) == [
        "w_moment1_0",
        "LR_Scheduler.last_epoch",
        "LR_Scheduler.last_lr",
        "master_weights.w",
        "master_weights.b",
    ]
    assert found["LR_Scheduler.last_lr"].shape == () and found["LR_Scheduler.last_lr"] == 0.5


def test_read_checkpoint_says_when_there_is_no_array(tmp_path):
    with pytest.raises(CheckpointError, match=r"f.pdparams: holds no arrays$"):
        read(tmp_path, {"name": "text"})
