"""tools/benchmark.py: what its command line refuses, and a whole small run."""

import json

import pytest
from tiny_run import tiny_file

from passl_xcit.utils.errors import CheckpointError, ConfigError, DataError
from tools.benchmark import main

MODEL = ["--models", "xcit_nano_12_p16"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "give what to measure: --models, --operators, --pipeline or --startup"),
        ([*MODEL, "--modes", "trane"], "trane: there is no such mode"),
        ([*MODEL, "--engines", "onednn,timm"], "timm: there is no such contender"),
        ([*MODEL, "--vs", "timm-eager", "--peer_python", "nowhere"], "--peer_python nowhere: there is no such file"),
        (["--pipeline", "nowhere.yaml"], "nowhere.yaml"),
        (["--models", "xcit_nano_12_p17"], "no model 'xcit_nano_12_p17'; did you mean"),
        ([*MODEL, "--image_sizes", "100"], "100 pixels do not divide into patches of 16"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(tmp_path, arguments, reason):
    with pytest.raises((ConfigError, DataError), match=reason):
        main([*arguments, "--output", str(tmp_path / "b.json")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--batch_sizes", "0"], "expected whole numbers from 1 on"),
        (["--batch_sizes", "1;2"], "expected whole numbers from 1 on"),
        (["--models", ","], "expected names with commas between"),
        (["--num_workers", "-1"], "expected"),
        (["--repeats", "many"], "expected whole numbers"),
    ],
)
def test_odd_values_are_refused(capsys, arguments, reason):
    with pytest.raises(SystemExit) as stop:
        main([*MODEL, *arguments, "--output", "b.json"])
    assert stop.value.code == 2
    assert reason in capsys.readouterr().err


def test_a_page_is_written_alone(tmp_path):
    with pytest.raises(ConfigError, match="--write_page measures nothing"):
        main(["--write_page", "page.md", "--output", str(tmp_path / "b.json")])


def test_the_output_is_json(tmp_path):
    with pytest.raises(ConfigError, match="expected a name that ends in .json"):
        main([*MODEL, "--output", str(tmp_path / "b.txt")])


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        main(["--startup", "--output", str(tmp_path / "file" / "b.json")])


@pytest.mark.slow
def test_a_run_writes_a_file_and_prints_tables(tmp_path, capsys):
    output = tmp_path / "b.json"
    size = ["--batch_sizes", "1", "--image_sizes", "32", "--repeats", "1", "--threads", "1"]
    data = ["--pipeline", str(tiny_file(tmp_path)), "--num_workers", "0"]
    main([*MODEL, *size, "--vs", "textbook", *data, "--output", str(output)])
    printed = capsys.readouterr().out
    assert "**xcit_nano_12_p16 inference float32, 32 px, batch 1, 1 thread**" in printed
    assert "| `textbook` |" in printed and "| load |" in printed
    assert len(json.loads(output.read_text())["measurements"]) == 3
