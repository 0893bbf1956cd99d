"""ReaL labels: the official file's form, and the count by the definition."""

import json
import math

import numpy as np
import pytest
from PIL import Image
from tiny_run import tiny_run

from passl_xcit.datasets.demo_fashion_mnist import FashionMNIST
from passl_xcit.engine.evaluation import EvaluationOptions
from passl_xcit.engine.real_labels import labels_of, read_real_labels, real_correct
from passl_xcit.utils.errors import ConfigError, DataError


def written(tmp_path, content):
    path = tmp_path / "real.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[0], [1", "cannot be read: it is not JSON"),
        ("[" * 100_000, "cannot be read: it is not JSON"),
        ({"a": 1}, "expected a list with a list of class numbers for each image"),
        ([], "expected a list with a list"),
        ([[0], 1], r"entry 1 \(from 0\) is no list of class numbers"),
        ([[0], ["1"]], r"entry 1 \(from 0\) is no list"),
        ([[0], [True]], r"entry 1 \(from 0\) is no list"),
        ([[0], [], [1, 1000]], r"entry 2 \(from 0\): 1000 is no class of the model: expected 0 to 999"),
        ([[-1]], r"entry 0 \(from 0\): -1 is no class"),
    ],
)
def test_a_bad_file_is_refused(content, message, tmp_path):
    path = written(tmp_path, content)
    with pytest.raises(ConfigError, match=f"^--real_labels {path}: .*{message}"):
        read_real_labels(path, 1000)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="real.json: cannot be read: No such file"):
        read_real_labels(tmp_path / "real.json", 1000)


@pytest.mark.parametrize("k", [1, 5])
def test_right_is_what_is_among_the_labels(k):
    rng = np.random.default_rng(0)
    best = np.array([rng.permutation(10)[:k] for _ in range(200)])
    labels = [rng.permutation(10)[: rng.integers(0, 4)].tolist() for _ in range(200)]
    for found, row, classes in zip(real_correct(best, labels), best, labels):
        assert math.isnan(found) if not classes else found == float(any(label in row for label in classes))


def test_data_without_file_names_is_refused(tmp_path):
    with pytest.raises(DataError, match="real.json: does not know the image image 0: expected a file name such as ILS"):
        labels_of(FashionMNIST("test"), [[0]] * 2000, tmp_path / "real.json")


OPTIONS = ("model.head.num_classes=3",)


@pytest.fixture(scope="module")
def validation(tmp_path_factory):
    """(folder, weights) of a tiny run whose validation images are called as ImageNet's, shuffled over the classes."""
    folder = tmp_path_factory.mktemp("real")
    tiny_run(folder, "epochs=1", *OPTIONS)
    numbers = np.random.default_rng(0).permutation(15) + 1
    for number, path in zip(numbers, sorted((folder / "val").rglob("*.png"))):
        with Image.open(path) as image:
            image.save(path.with_name(f"ILSVRC2012_val_{number:08d}.JPEG"), quality=98)
        path.unlink()
    return folder, folder / "out" / "latest.pdparams"


def evaluate(validation, path, report=None):
    folder, weights = validation
    return tiny_run(folder, *OPTIONS, load=weights, evaluate_only=True, evaluation=EvaluationOptions(report, path))


def test_each_image_has_the_labels_of_its_number(validation, tmp_path, capsys):
    """The report's lines are counted anew: images without labels are left out, of the mean as well."""
    rng = np.random.default_rng(2)
    labels = [[], [], *[rng.permutation(3)[: 1 + rng.integers(0, 2)].tolist() for _ in range(13)], [0], [1]]
    metrics = evaluate(validation, written(tmp_path, labels), tmp_path / "report")
    lines = (tmp_path / "report" / "predictions.csv").read_text().splitlines()
    header, rows = lines[0].split(","), [line.split(",") for line in lines[1:]]
    right = []
    for row in (dict(zip(header, row)) for row in rows):
        classes = labels[int(row["path"][-13:-5]) - 1]
        expected = "" if not classes else str(int(row["prediction"]) in classes)
        assert row["real_correct"] == expected
        right += [expected == "True"] if classes else []
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert len(right) == 13 == report["real"]["samples"]
    assert report["real"]["acc1"]["value"] == 100.0 * sum(right) / 13
    assert report["real"]["acc5"]["value"] == 100.0
    line = f"Validate ReaL Epoch [1] acc1 ({100 * np.mean(right):6.3f}), acc5 (100.000), 13 of 15 images have labels"
    assert line in capsys.readouterr().out
    assert metrics == evaluate(validation, None), "the accuracy by the original labels is the same"


def test_without_a_report_the_line_is_all(validation, tmp_path, capsys):
    evaluate(validation, written(tmp_path, [[0]] * 15))
    assert "Validate ReaL Epoch [1] acc1 (" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([[0]] * 14, DataError, "has 14 entries, and none for .*ILSVRC2012_val_00000015.JPEG"),
        ([[]] * 15, ConfigError, "has no label for any image of .*/val$"),
        ([[3]] * 15, ConfigError, "3 is no class of the model: expected 0 to 2"),
    ],
)
def test_labels_of_other_images_are_refused(labels, error, message, validation, tmp_path):
    with pytest.raises(error, match=message):
        evaluate(validation, written(tmp_path, labels))


def test_with_a_class_list_they_are_refused(validation, tmp_path):
    with pytest.raises(ConfigError, match="--real_labels and --class_list cannot go together"):
        tiny_run(validation[0], load=validation[1], evaluate_only=True, evaluation=EvaluationOptions(None, "a", "b"))
