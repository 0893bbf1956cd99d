"""The files of an evaluation: their numbers, whom they belong to, and that they are whole or not there."""

import csv
import hashlib
import json
import math
import os

import numpy as np
import pytest
from tiny_run import ROOT, tiny_config, tiny_file, tiny_run

from passl_xcit.engine import evaluation_report
from passl_xcit.engine.builder import build_loader
from passl_xcit.engine.evaluation import EvaluationOptions
from passl_xcit.metrics import wilson_interval
from passl_xcit.utils.errors import CheckpointError, ConfigError

FILES = {"report.html", "report.json", "predictions.csv"}
COUNTED = "dataloader.val.dataset.on_bad_image=count_as_wrong"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, weights) of a tiny run."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_run(folder, "epochs=1")
    return folder, folder / "out" / "latest.pdparams"


def evaluate(trained, *overrides, report=None):
    evaluation = EvaluationOptions(report and str(report))
    return tiny_run(trained[0], *overrides, load=str(trained[1]), evaluate_only=True, evaluation=evaluation)


def read(folder):
    """(report, lines of the predictions as {column: text})"""
    with open(folder / "predictions.csv", encoding="utf-8", newline="") as file:
        return json.loads((folder / "report.json").read_text()), list(csv.DictReader(file))


@pytest.fixture(scope="module")
def written(trained, tmp_path_factory):
    """(report, lines, metrics) of an evaluation of the tiny run."""
    folder = tmp_path_factory.mktemp("written") / "new" / "report"
    metrics = evaluate(trained, report=folder)
    assert {path.name for path in folder.iterdir()} == FILES
    return (*read(folder), metrics)


class TestTheAccuracy:
    def test_is_that_of_an_evaluation_without_a_report_to_the_last_digit(self, trained, written):
        report, _, metrics = written
        alone = evaluate(trained)
        assert metrics == alone
        assert {name: report["accuracy"][name] for name in ("acc1", "acc5")} == alone

    def test_is_that_of_the_lines(self, written):
        report, lines, metrics = written
        right = sum(line["correct"] == "True" for line in lines)
        assert metrics["acc1"] == 100.0 * right / len(lines) and 0 < right < len(lines)
        low, high = wilson_interval(right, len(lines))
        assert report["accuracy"]["acc1_interval"] == [100 * low, 100 * high]

    def test_of_each_class_is_that_of_its_lines(self, written):
        report, lines, _ = written
        for row in report["classes"]:
            own = [line for line in lines if line["target"] == str(row["class"])]
            assert row["samples"] == len(own) == 5
            assert row["accuracy"] == pytest.approx(100 * sum(line["correct"] == "True" for line in own) / 5)
            said = [line for line in lines if line["prediction"] == str(row["class"])]
            assert row["predicted"] == len(said)
            hits = sum(line["correct"] == "True" for line in said)
            assert row["precision"] == (pytest.approx(100 * hits / len(said)) if said else None)

    def test_of_an_evaluation_with_another_batch_size_and_workers_is_the_same(self, trained, written, tmp_path):
        evaluate(trained, "dataloader.val.sampler.batch_size=7", "dataloader.val.num_workers=2", report=tmp_path)
        report, lines = read(tmp_path)
        assert [line["prediction"] for line in lines] == [line["prediction"] for line in written[1]]
        assert report["accuracy"]["loss"] == pytest.approx(written[0]["accuracy"]["loss"], rel=1e-5)


def test_each_line_says_what_the_model_says_of_the_image(trained, written):
    """The model is run anew, an image at a time, by the Predictor."""
    from passl_xcit import Predictor

    lines = written[1]
    predictions = Predictor(str(trained[1]), topk=3)([line["path"] for line in lines])
    for line, prediction in zip(lines, predictions):
        assert line["path"].startswith(str(trained[0] / "val"))
        assert line["target_name"] == os.path.basename(os.path.dirname(line["path"]))
        places = [guess.index for guess in prediction.top]
        assert line["top5"] == " ".join(map(str, places)) and line["prediction"] == str(places[0])
        assert line["prediction_name"] == prediction.top[0].name
        found = [float(number) for number in line["top5_probabilities"].split()]
        assert found == pytest.approx([guess.probability for guess in prediction.top], abs=2e-6)
        assert float(line["probability"]) == found[0]
        assert float(line["margin"]) == pytest.approx(found[0] - found[1], abs=2e-6)
        assert (line["correct"] == "True") == (line["target"] == line["prediction"])


def test_loss_and_calibration_are_those_of_the_lines(written):
    report, lines, _ = written
    rows = [dict(zip(map(int, line["top5"].split()), map(float, line["top5_probabilities"].split()))) for line in lines]
    targets = [int(line["target"]) for line in lines]
    loss = -math.fsum(math.log(row[target]) for row, target in zip(rows, targets)) / len(lines)
    assert report["accuracy"]["loss"] == report["calibration"]["nll"] == pytest.approx(loss, abs=1e-5)
    brier = math.fsum(math.fsum((p - (k == t)) ** 2 for k, p in row.items()) for row, t in zip(rows, targets))
    assert report["calibration"]["brier"] == pytest.approx(brier / len(lines), abs=1e-5)
    assert sum(report["calibration"]["samples_in_bin"]) == len(lines)
    confidence = math.fsum(max(row.values()) for row in rows) / len(lines)
    assert report["calibration"]["mean_confidence"] == pytest.approx(100 * confidence, abs=1e-4)


def test_confusions_are_those_of_the_lines(written):
    report, lines, _ = written
    pairs = [(int(line["target"]), int(line["prediction"])) for line in lines]
    matrix = report["confusion"]["matrix"]
    assert matrix == [[pairs.count((row, column)) for column in range(3)] for row in range(3)]
    for pair in report["confused_pairs"]:
        assert matrix[pair["target"]][pair["prediction"]] == pair["samples"] > 0
    for row in report["classes"]:
        others = [(count, -k) for k, count in enumerate(matrix[row["class"]]) if k != row["class"] and count]
        most = {"prediction": -max(others)[1], "samples": max(others)[0]} if others else None
        assert row["most_confused_with"] == most


def test_the_most_confident_errors_come_first(written):
    report, lines, _ = written
    wrong = sorted((line for line in lines if line["correct"] == "False"), key=lambda line: -float(line["probability"]))
    assert [error["path"] for error in report["confident_errors"]] == [line["path"] for line in wrong]
    assert lines[report["confident_errors"][0]["index"]] == wrong[0]


def test_it_says_what_it_belongs_to(trained, written):
    folder, weights = trained
    origin = written[0]["origin"]
    assert origin["weights"] == {
        "file": str(weights),
        "bytes": weights.stat().st_size,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    cfg = tiny_config(folder)
    assert origin["data"] == {"where": str(folder / "val"), **build_loader(cfg, "val", 3).dataset.fingerprint()}
    assert origin["preprocessing"] == cfg["dataloader"]["val"]["dataset"]["transforms"]
    assert origin["config"]["file"] == str(tiny_file(folder)) and "embed_dim: 8" in origin["config"]["content"]
    assert origin["device"]["name"] == "cpu" and origin["device"]["processes"] == 1
    assert set(origin["versions"]) >= {"passl_xcit", "paddle", "numpy", "python"}
    assert written[0]["speed"]["images_per_sec"] > 0


def test_the_command_hides_what_an_address_may_hold(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tools/validate.py", "https://me:secret@host/w.pdparams?token=abc"])
    evaluate(trained, report=tmp_path)
    assert read(tmp_path)[0]["origin"]["command"] == "tools/validate.py 'https://***@host/w.pdparams?***'"


def test_images_that_cannot_be_used_have_a_line_and_count_as_wrong(tmp_path):
    tiny_run(tmp_path, "epochs=1")
    for name in ("class0/1.png", "class2/4.png"):
        (tmp_path / "val" / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    trained = tmp_path, tmp_path / "out" / "latest.pdparams"
    metrics = evaluate(trained, COUNTED, report=tmp_path / "report")
    report, lines = read(tmp_path / "report")
    right = sum(line["correct"] == "True" for line in lines)
    assert metrics == {"acc1": 100.0 * right / 15, "acc5": 100.0 * 13 / 15, "bad_images": 2}
    assert report["accuracy"]["acc1"] == metrics["acc1"] and report["accuracy"]["unusable"] == 2
    empty = [line for line in lines if not line["prediction"]]
    assert [line["path"][-12:] for line in empty] == ["class0/1.png", "class2/4.png"]
    assert {line["correct"] for line in empty} == {"False"} and len(lines) == 15
    assert sum(report["calibration"]["samples_in_bin"]) == 13 == sum(map(sum, report["confusion"]["matrix"]))
    page = (tmp_path / "report" / "report.html").read_text()
    assert "2 of the images cannot be used; they count as wrong in every accuracy" in page


@pytest.mark.slow
def test_images_of_arrays_are_called_by_their_number(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    from passl_xcit.engine.launch import run

    config = "configs/demo/xcit_demo_p4_fashion_mnist.yaml"
    run(config, load="weights/xcit_demo_p4_fashion_mnist.pdparams", evaluate_only=True, evaluation=options(tmp_path))
    report, lines = read(tmp_path)
    assert [line["path"] for line in lines[:2]] == ["image 0", "image 1"] and len(lines) == 2000
    assert (report["accuracy"]["acc1"], report["accuracy"]["acc5"]) == (90.35, 99.85)
    assert (tmp_path / "report.html").read_text().count('src="data:image/png;base64,') == 24


def options(folder):
    return EvaluationOptions(str(folder))


class TestTheFolder:
    def test_keeps_what_others_have_put_there(self, trained, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        evaluate(trained, report=tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {*FILES, "notes.txt"}

    def test_that_cannot_be_made_is_refused_before_anything_is_evaluated(self, trained, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        with pytest.raises(
            ConfigError, match=f"--report {tmp_path}/file/new: {tmp_path}/file is no folder that can be"
        ):
            evaluate(trained, report=tmp_path / "file" / "new")
        assert "Evaluate" not in capsys.readouterr().out

    def test_is_not_made_where_the_evaluation_fails(self, trained, tmp_path):
        with pytest.raises(ConfigError):
            evaluate(trained, "dataloader.val.sampler.drop_last=true", report=tmp_path / "new")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", sorted(FILES))
    def test_a_file_that_cannot_be_written_is_an_error_that_leaves_no_half_of_it(self, name, trained, tmp_path):
        (tmp_path / name).mkdir()
        with pytest.raises(CheckpointError, match=f"{name}: cannot be written"):
            evaluate(trained, report=tmp_path)
        assert not list(tmp_path.glob(".*"))

    def test_holds_no_page_that_could_not_be_made(self, trained, tmp_path, monkeypatch):
        """All is made before the first file is written."""

        def fail(report, pictures):
            raise RuntimeError("a bug")

        monkeypatch.setattr(evaluation_report, "render", fail)
        with pytest.raises(RuntimeError, match="a bug"):
            evaluate(trained, report=tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_a_class_without_images_has_no_accuracy(tmp_path):
    tiny_run(tmp_path, "epochs=1")
    for path in (tmp_path / "val" / "class1").iterdir():
        path.unlink()
    evaluate((tmp_path, tmp_path / "out" / "latest.pdparams"), report=tmp_path / "report")
    report = read(tmp_path / "report")[0]
    assert (report["classes"][1]["accuracy"], report["classes"][1]["accuracy_interval"]) == (None, [None, None])
    means = [row["accuracy"] for row in report["classes"] if row["samples"]]
    assert report["accuracy"]["mean_class_accuracy"] == pytest.approx(np.mean(means))
