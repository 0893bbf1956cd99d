"""tools/convert_weights.py: there and back bit for bit, and no half-right file for what cannot be converted."""

import json
import re
from pathlib import Path

import numpy as np
import paddle
import pytest

from passl_xcit import CheckpointError, create_model, load_weights, read_checkpoint
from passl_xcit.modeling.checkpoint_formats import read_file, write_file, write_weights
from passl_xcit.modeling.convert import convert_weights as convert
from passl_xcit.utils.errors import exit_with_one_line
from tools import convert_weights

ROOT = Path(__file__).parents[2]
PEERS = json.loads((ROOT / "tests/golden/peer_names.json").read_text())
FILES = [
    ("timm", "xcit_nano_12_p16_224", None),
    ("timm", "crossvit_9_dagger_240", None),
    ("timm", "regnety_002", None),
    ("mmpretrain", "xcit-nano-12-p16_3rdparty_in1k", "state_dict"),
]


def random_arrays(shapes, seed=0):
    generator = np.random.RandomState(seed)
    return {
        name: np.array(generator.randint(1000), "int64")
        if name.endswith("num_batches_tracked")
        else generator.standard_normal(shape).astype("float32")
        for name, shape in shapes.items()
    }


def assert_same(have, want):
    assert have.keys() == want.keys()
    for name, array in want.items():
        assert have[name].dtype == array.dtype and have[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize(("dialect", "model", "wrapper"), FILES)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_to_paddle_and_back_is_the_same_bit_for_bit(dialect, model, wrapper, suffix, tmp_path):
    arrays = random_arrays(PEERS[dialect][model])
    source, paddles, back = tmp_path / f"a{suffix}", tmp_path / "b.pdparams", tmp_path / f"c{suffix}"
    write_weights(source, arrays, wrapper=wrapper if suffix == ".pth" else None)
    convert(source, paddles, "paddle")
    convert(paddles, back, dialect)
    assert_same(read_checkpoint(back), arrays)
    if suffix == ".pth":
        assert read_file(back).keys() == read_file(source).keys()


@pytest.mark.parametrize(("dialect", "model", "wrapper"), FILES)
def test_over_the_official_names_too(dialect, model, wrapper, tmp_path):
    arrays = random_arrays(PEERS[dialect][model])
    write_weights(tmp_path / "a.pth", arrays)
    steps = [("official", "b.pth"), ("paddle", "c.pdparams"), ("official", "d.pth"), (dialect, "e.pth")]
    previous = tmp_path / "a.pth"
    for to, name in steps:
        convert(previous, tmp_path / name, to)
        previous = tmp_path / name
    assert_same(read_checkpoint(tmp_path / "d.pth"), read_checkpoint(tmp_path / "b.pth"))
    assert_same(read_checkpoint(previous), arrays)


def test_half_precision_stays_half(tmp_path):
    arrays = random_arrays(PEERS["timm"]["crossvit_9_240"])
    arrays = {name: array.astype("float16") for name, array in arrays.items()}
    write_weights(tmp_path / "a.safetensors", arrays)
    convert(tmp_path / "a.safetensors", tmp_path / "b.pdparams", "paddle")
    convert(tmp_path / "b.pdparams", tmp_path / "c.safetensors", "timm")
    assert_same(read_checkpoint(tmp_path / "c.safetensors"), arrays)


def test_a_converted_file_is_what_paddle_and_passl_load(tmp_path):
    arrays = random_arrays(PEERS["timm"]["xcit_nano_12_p16_224"])
    write_weights(tmp_path / "a.pth", arrays)
    convert(tmp_path / "a.pth", tmp_path / "b.pdparams", "paddle")
    model = create_model("xcit_nano_12_p16")
    missing, _ = model.set_state_dict(paddle.load(str(tmp_path / "b.pdparams")))
    assert not missing
    found = {name: array.numpy() for name, array in model.state_dict().items()}
    load_weights(model, tmp_path / "a.pth")
    assert_same({name: array.numpy() for name, array in model.state_dict().items()}, found)


def test_moving_averages_are_converted_when_asked_for(tmp_path):
    weights, averages = (random_arrays(PEERS["timm"]["crossvit_9_240"], seed) for seed in (1, 2))
    write_file(tmp_path / "a.pdparams", {"model": weights, "model_ema": averages, "epoch": 3})
    convert(tmp_path / "a.pdparams", tmp_path / "w.safetensors", "timm")
    convert(tmp_path / "a.pdparams", tmp_path / "e.safetensors", "timm", ema=True)
    assert_same(read_checkpoint(tmp_path / "w.safetensors"), weights)
    assert_same(read_checkpoint(tmp_path / "e.safetensors"), averages)


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as exit:
            exit_with_one_line(convert_weights.main, list(arguments))
        output, errors = capsys.readouterr()
        return exit.value.code or 0, output, errors

    return call


def test_the_tool_says_what_it_did(run, tmp_path):
    write_weights(tmp_path / "a.pth", random_arrays(PEERS["timm"]["xcit_nano_12_p16_224"]))
    code, output, errors = run("a.pth", "b.pdparams", "--to", "paddle")
    assert (code, errors) == (0, "")
    assert output == "xcit_nano_12_p16: 367 arrays, timm -> paddle, written to b.pdparams\n"


def mindcv():
    shapes = PEERS["mindcv"]["xcit_tiny_12_p16_224"]
    return random_arrays(shapes)


@pytest.mark.parametrize(
    ("arrays", "arguments", "message"),
    [
        (
            random_arrays({"fc.weight": [2, 3]}),
            ("b.pdparams", "--to", "paddle"),
            "holds no XCiT, CrossViT or RegNet; th",
        ),
        (random_arrays(PEERS["timm"]["crossvit_9_240"]), ("b.pth", "--to", "mmpretrain"), "mmpretrain has no crossvit"),
        (
            random_arrays(PEERS["timm"]["crossvit_9_240"]),
            ("b.pth", "--to", "paddle"),
            "b.pth: a file for paddle ends in",
        ),
        (
            random_arrays(PEERS["timm"]["crossvit_9_240"]),
            ("b.txt", "--to", "timm"),
            "b.txt: a file for timm ends in .pth",
        ),
        (random_arrays(PEERS["timm"]["crossvit_9_240"]), ("no/b.pth", "--to", "timm"), "no/b.pth: cannot be written"),
        (
            random_arrays(PEERS["timm"]["crossvit_9_240"]),
            ("a.safetensors", "--to", "timm"),
            "a.safetensors: is the source itself",
        ),
        (
            random_arrays(PEERS["timm"]["crossvit_9_240"]),
            ("link.pth", "--to", "timm"),
            "link.pth: is the source itself",
        ),
        (random_arrays({"fc\n\x1b[31m": [2, 3]}), ("b.pdparams", "--to", "paddle"), "is 'fc\\n\\x1b[31m'"),
        (mindcv(), ("b.pth", "--to", "timm"), "which timm cannot compute; convert it to paddle"),
        (None, ("b.pth", "--to", "timm"), "a.safetensors: there is no such file"),
    ],
)
def test_what_cannot_be_converted_is_said_in_one_line_and_leaves_nothing(arrays, arguments, message, run, tmp_path):
    if arrays is not None:
        write_weights(tmp_path / "a.safetensors", arrays)
        (tmp_path / "link.pth").symlink_to("a.safetensors")
    before = sorted(path.name for path in tmp_path.iterdir())
    code, output, errors = run("a.safetensors", *arguments)
    assert code == 1 and output == ""
    assert re.fullmatch(rf"error: [^\n]*{re.escape(message)}[^\n]*\n", errors), errors
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_unknown_target_is_refused_by_the_command_line(run, capsys):
    with pytest.raises(SystemExit) as exit:
        convert_weights.parse_args(["a", "b", "--to", "onnx"])
    assert exit.value.code == 2 and "invalid choice: 'onnx'" in capsys.readouterr().err


def test_nothing_is_written_when_the_source_is_refused(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"<html>")
    with pytest.raises(CheckpointError, match="is an HTML page"):
        convert(tmp_path / "a.pth", tmp_path / "b.pdparams", "paddle")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
