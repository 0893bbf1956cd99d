"""tools/extract_weight.py takes weights out of training checkpoints."""

import numpy as np
import pytest

from passl_xcit.modeling.checkpoint_formats import read_file, write_file
from passl_xcit.utils.errors import CheckpointError
from tools.extract_weight import main

WEIGHTS = {"backbone.norm.weight": np.arange(3.0), "backbones.x": np.ones(2), "head.fc_cls.bias": np.zeros(4)}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "epoch_3.pdparams"
    write_file(path, {"epoch": 3, "state_dict": WEIGHTS, "optimizer": {}, "lr_scheduler": {}})
    return path


@pytest.mark.parametrize("name", ["weights.pth", "weights", "weights.xyz"])
def test_weights_go_to_a_file_of_paddles(checkpoint, tmp_path, name):
    with pytest.raises(CheckpointError, match=f"{name}: Paddle's weights go to a file that ends in .pdparams"):
        main([str(checkpoint), "--output", str(tmp_path / name)])
    assert not (tmp_path / name).exists()


def test_the_source_itself_is_not_overwritten(checkpoint):
    before = checkpoint.read_bytes()
    with pytest.raises(CheckpointError, match="is the source itself, of which just the weights would be left"):
        main([str(checkpoint), "--output", str(checkpoint)])
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize("arguments", [["", "--output", "b.pdparams"], ["a.pdparams", "--output", ""]])
def test_an_unset_variable_of_a_shell_script_is_named(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2 and "expected a path, not an empty text" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, names",
    [
        ([], list(WEIGHTS)),
        (["--prefix", "backbone"], ["backbone.norm.weight"]),
        (["--prefix", "backbone", "--remove_prefix"], ["norm.weight"]),
    ],
)
def test_only_the_named_part_is_written(checkpoint, tmp_path, flags, names, capsys):
    output = tmp_path / "weights.pdparams"
    main([str(checkpoint), "--output", str(output), *flags])
    written = read_file(output)
    assert list(written) == names
    for name, array in written.items():
        original = next(WEIGHTS[key] for key in WEIGHTS if key.endswith(name))
        np.testing.assert_array_equal(array, original)
    assert capsys.readouterr().out == f"{len(names)} arrays written to {output}\n"


def test_the_moving_averages_are_written_under_the_names_of_the_weights(tmp_path):
    averages = {name: array + 0.5 for name, array in WEIGHTS.items()}
    write_file(tmp_path / "epoch_3.pdparams", {"state_dict": WEIGHTS, "state_dict_ema": averages})
    output = tmp_path / "ema.pdparams"
    main([str(tmp_path / "epoch_3.pdparams"), "--output", str(output), "--ema", "--prefix", "head"])
    (written,) = read_file(output).items()
    assert written[0] == "head.fc_cls.bias" and (written[1] == 0.5).all()


@pytest.mark.parametrize("entries", [{}, {"state_dict_ema": None}])
def test_a_checkpoint_without_averages_is_refused(entries, tmp_path):
    write_file(tmp_path / "epoch_3.pdparams", {"state_dict": WEIGHTS, **entries})
    with pytest.raises(
        CheckpointError, match=r"epoch_3.pdparams: holds no moving averages \(EMA\) of weights; take the"
    ):
        main([str(tmp_path / "epoch_3.pdparams"), "--output", str(tmp_path / "ema.pdparams"), "--ema"])
    assert not (tmp_path / "ema.pdparams").exists()


def test_a_prefix_that_names_nothing_is_refused_and_writes_nothing(checkpoint, tmp_path):
    output = tmp_path / "weights.pdparams"
    with pytest.raises(CheckpointError, match="no name begins with 'Student.'; the first is 'backbone.norm.weight'"):
        main([str(checkpoint), "--output", str(output), "--prefix", "Student"])
    assert not output.exists()


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        main([str(tmp_path / "epoch_1.pdparams"), "--output", str(tmp_path / "weights.pdparams")])
