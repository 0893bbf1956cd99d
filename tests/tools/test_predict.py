"""The command line of tools/predict.py: inputs, formats, exit codes, and nothing but results on stdout."""

import csv
import io
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny_run import ROOT, start, tiny_file, tiny_run

sys.path.insert(0, str(ROOT / "tools"))
import predict

from passl_xcit.engine.predictor import Predictor
from passl_xcit.modeling.checkpoint_formats import read_file, write_file
from passl_xcit.utils.errors import exit_with_one_line

PREDICT = ROOT / "tools" / "predict.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(weights, folder of images) of a tiny run, whose classes have names that formats must bear."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_run(folder, "epochs=1")
    tree = {**read_file(folder / "out" / "latest.pdparams"), "class_names": ['a "b", c', "d\ne", "鸟"]}
    write_file(folder / "weights.pdparams", tree)
    return folder / "weights.pdparams", folder / "val"


@pytest.fixture
def run(monkeypatch, tmp_path, capsysbinary):
    """(exit code, stdout, stderr) of `tools/predict.py <arguments>`, run in an empty folder, with `stdin`."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as exit:
            exit_with_one_line(predict.main, [str(argument) for argument in arguments])
        output, errors = capsysbinary.readouterr()
        return exit.value.code or 0, output.decode(), errors.decode()

    return call


@pytest.fixture
def expected(trained):
    """{path: Prediction} of the images of the folder."""
    return {prediction.image: prediction for prediction in Predictor(trained[0])(trained[1])}


def as_json(prediction):
    top = [{**guess._asdict(), "probability": pytest.approx(guess.probability, abs=1e-6)} for guess in prediction.top]
    return {"image": prediction.image, "top": top}


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_json_holds_what_the_predictor_says(form, run, trained, expected):
    code, output, errors = run(trained[1], "--weights", trained[0], "--format", form)
    assert code == 0
    found = json.loads(output) if form == "json" else [json.loads(line) for line in output.splitlines()]
    assert found == [as_json(prediction) for prediction in expected.values()]
    assert re.fullmatch(r"15 images in [\d.]+ s, [\d.]+ images/s\n", errors)


def test_csv_holds_it_too(run, trained, expected):
    code, output, _ = run(trained[1], "gone.png", "--weights", trained[0], "--topk", 2, "--format", "csv")
    header, *rows = csv.reader(io.StringIO(output))
    assert header == ["image", "error", "class1", "name1", "probability1", "class2", "name2", "probability2"]
    for row, prediction in zip(rows, expected.values()):
        cells = [cell for guess in prediction.top[:2] for cell in (str(guess.index), guess.name)]
        assert row[:2] == [prediction.image, ""] and [*row[2:4], *row[5:7]] == cells
        assert float(row[4]) == pytest.approx(prediction.top[0].probability, abs=1e-6)
    assert rows[-1] == ["gone.png", "the image cannot be read: No such file or directory"] + [""] * 6
    assert len(rows) == 16 and code == 1


def test_a_table_has_a_line_an_image(run, trained, expected):
    code, output, _ = run(trained[1], "gone.png", "--weights", trained[0], "--topk", 1)
    header, *lines = output.splitlines()
    assert header.split() == ["top-1", "%", "image"] and code == 1
    for line, prediction in zip(lines, expected.values()):
        guess = prediction.top[0]
        name = guess.name.replace("\n", "\\n")
        assert line == f"{name:<8}  {100 * guess.probability:6.2f}  {prediction.image}"
    assert lines[-1].split("  ") == ["the image cannot be read: No such file or directory", "gone.png"]


def test_bad_images_are_listed_and_the_exit_code_tells(run, trained, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    code, output, errors = run("text.png", trained[1], "gone.png", "--weights", trained[0], "--format", "jsonl")
    lines = [json.loads(line) for line in output.splitlines()]
    assert code == 1 and len(lines) == 17
    reason = "the image cannot be read: not an image of a known format"
    assert lines[0] == {"image": "text.png", "error": reason} and lines[-1]["image"] == "gone.png"
    assert (
        f"2 of 17 images could not be used: text.png: {reason}; gone.png: the image cannot be read: No such" in errors
    )


def test_paths_come_from_standard_input(run, trained, expected):
    lines = "".join(f"{path}\r\n\n" for path in expected).encode() + b"\xff.png"
    code, output, _ = run("-", "--weights", trained[0], "--format", "json", stdin=lines)
    *found, last = json.loads(output)
    assert found == [as_json(prediction) for prediction in expected.values()]
    assert last == {"image": "\udcff.png", "error": "the image cannot be read: No such file or directory"}
    code, output, errors = run("-", "--weights", trained[0], "--format", "json")
    assert code == 1 and errors.endswith("error: standard input names no image\n")


def test_a_folder_without_images_on_standard_input_stops_nothing(run, trained, expected, tmp_path):
    (tmp_path / "empty").mkdir()
    first, last = list(expected)[::14]
    lines = f"{first}\nempty\n{last}\n".encode()
    code, output, errors = run("-", "--weights", trained[0], "--format", "json", stdin=lines)
    assert code == 1 and "1 of 3 images could not be used: empty: not a file" in errors
    before, without, after = json.loads(output)
    assert [before, after] == [as_json(expected[first]), as_json(expected[last])]
    assert without["image"] == "empty"


def test_no_path_on_standard_input_leaves_an_output_file_alone(run, trained, tmp_path):
    (tmp_path / "out.json").write_text("before")
    code, _, errors = run("-", "--weights", trained[0], "--format", "json", "-o", "out.json")
    assert code == 1 and errors.endswith("error: standard input names no image\n")
    assert (tmp_path / "out.json").read_text() == "before"


def test_an_output_file_is_whole_or_what_it_was(run, trained, tmp_path, monkeypatch, expected):
    out = tmp_path / "out.jsonl"
    out.write_text("before")
    form = ("--format", "jsonl", "-o", out)
    code, output, _ = run(trained[1], "--weights", trained[0], *form)
    assert code == 0 and output == "" and len(out.read_text().splitlines()) == 15
    before = out.read_text()
    monkeypatch.setattr(Predictor, "logits", lambda *_: (_ for _ in ()).throw(MemoryError))
    code, _, errors = run(trained[1], "--weights", trained[0], *form)
    assert code == 1 and "not enough memory" in errors and out.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_names_of_classes_may_come_from_a_file(run, trained, tmp_path):
    (tmp_path / "names.txt").write_text("\ufeffx\ny\n\nz\n", encoding="utf-8")
    arguments = (trained[1], "--weights", trained[0], "--format", "jsonl", "--class_names")
    code, output, _ = run(*arguments, "names.txt")
    assert code == 0 and {guess["name"] for guess in json.loads(output.splitlines()[0])["top"]} == {*"xyz"}
    code, _, errors = run(*arguments, "nowhere.txt")
    assert code == 2 and errors == "error: --class_names nowhere.txt: cannot be read: No such file or directory\n"


def test_a_config_may_be_given(run, trained, expected):
    config = tiny_file(trained[1].parent)
    code, output, _ = run(trained[1], "--weights", trained[0], "-c", config, "--format", "json")
    assert code == 0 and json.loads(output) == [as_json(prediction) for prediction in expected.values()]


def test_the_log_goes_to_stderr(run, trained, tmp_path):
    other = tiny_file(trained[1].parent).read_text().replace("50.0", "25.0")
    (tmp_path / "other.yaml").write_text(other)
    code, output, errors = run(trained[1], "--weights", trained[0], "-c", "other.yaml", "--format", "json")
    assert code == 0 and len(json.loads(output)) == 15
    assert "WARNING: transforms.1.std.0 is 25.0 in the config, but 50.0 in what" in errors


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("IMAGES", "--weights", "gone.pdparams"), 1, "gone.pdparams: there is no such file"),
        (("IMAGES", "--weights", "W", "--topk", "0"), 2, "topk must lie between 1 and 3"),
        (("IMAGES", "--weights", "W", "--topk", "99"), 2, "topk must lie between 1 and 3"),
        (("IMAGES", "--weights", "W", "--batch_size", "0"), 2, "batch_size must be a whole number, at least 1"),
        (("IMAGES", "--weights", "W", "-o", "no/where.csv"), 2, "-o no/where.csv: there is no folder no that can be"),
        (("IMAGES", "--weights", "W", "-o", "."), 2, "-o .: is not a file"),
        (("IMAGES", "--weights", "W", "-c", "gone.yaml"), 2, "gone.yaml: the config cannot be read"),
        ((".", "--weights", "W"), 1, r"\.: no image in this folder \(.jpg"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_on_stdout(arguments, code, message, run, trained):
    names = {"IMAGES": trained[1], "W": trained[0]}
    found, output, errors = run(*(names.get(argument, argument) for argument in arguments))
    assert found == code and output == "" and re.fullmatch(rf"error: {message}.*\n", errors), errors


@pytest.mark.parametrize("arguments", [(), ("a.png",), ("--weights", "W"), ("", "--weights", "W")])
def test_what_is_missing_on_the_command_line_is_exit_code_2(arguments, run):
    assert run(*arguments)[0] == 2


@pytest.mark.slow
def test_results_alone_are_on_stdout_and_a_reader_may_leave(trained, tmp_path):
    process = start(trained[1], "--weights", trained[0], "--num_workers", "2", before=(PREDICT,), cwd=tmp_path)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 0 and len(output.splitlines()) == 16
    assert re.fullmatch(r"15 images in [\d.]+ s, [\d.]+ images/s\n", errors), errors
    process = start(trained[1], "--weights", trained[0], before=(PREDICT,), cwd=tmp_path)
    process.stdout.close()
    assert process.wait(timeout=100) == 141
    assert "Traceback" not in process.stderr.read()


@pytest.mark.slow
def test_the_readme_shows_what_its_command_prints():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    command, shown = re.search(r"    python tools/predict\.py (docs/\S+ .*)\n\n```\n(.*?)```", text, re.DOTALL).groups()
    process = start(*shlex.split(command), before=(PREDICT,), cwd=ROOT)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    numbers = re.compile(r"\d+\.\d\d")  # the last digit may differ on another processor
    assert numbers.sub("", output) == numbers.sub("", shown)
    assert [float(x) for x in numbers.findall(output)] == pytest.approx([*map(float, numbers.findall(shown))], abs=0.02)
