"""The notebooks do what they show: run anew they say the same, and what is committed is what their cells made."""

import re
import sys

import nbformat
import pytest
from run_notebooks import DIGEST, NOTEBOOKS, ROOT, code_cells, run_notebook, source_digest

NAMES = [path.stem for path in NOTEBOOKS]
FIGURES = {"evaluate": 2, "fine_tune": 2, "distil": 2, "look_inside": 4}
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def read(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def outputs_of(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def printed(notebook):
    return "".join(output.text for output in outputs_of(notebook) if output.output_type == "stream")


def number(pattern, text):
    return float(re.search(pattern, text)[1])


def check_outputs(name, notebook):
    """What a reader is to see: nothing on stderr, no error, every picture, and figures that are as they should be."""
    outputs, text = outputs_of(notebook), printed(notebook)
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}, text
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == FIGURES[name] and all(len(picture) > 5000 for picture in pictures)
    CHECKS[name](text)


def check_evaluate(text):
    assert "Validate Epoch [1] acc1 (90.350), acc5 (99.850)" in text
    assert "right: 1,807 of 2,000, 90.35 %" in text and "outputs/report" in text


def check_fine_tune(text):
    fine_tuned = number(r"fine-tuned ([\d.]+) %", text)
    assert fine_tuned > 90 and fine_tuned > number(r"from scratch ([\d.]+) %", text) + 5
    assert number(r"(\d+) of 200 validation images are right", text) == pytest.approx(2 * fine_tuned)


def check_distil(text):
    assert min(number(r"alone ([\d.]+) %", text), number(r"distilled ([\d.]+) %", text)) > 30  # guessing: 10
    assert "dml_loss" in text and "head_loss" in text


def check_look_inside(text):
    assert "Ankle boot" in text and "[1, 1, 112, 112]" in text and "(1, 4, 28, 28)" in text
    assert "sums to [[1. 1. 1. 1.]]" in text and "outputs/pages/boot_features.png" in text


CHECKS = {
    "evaluate": check_evaluate,
    "fine_tune": check_fine_tune,
    "distil": check_distil,
    "look_inside": check_look_inside,
}


def test_every_notebook_is_checked():
    assert sorted(FIGURES) == sorted(CHECKS) == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_from_top_to_bottom_in_an_empty_folder(name, tmp_path):
    check_outputs(name, run_notebook(ROOT / "notebooks" / f"{name}.ipynb", tmp_path))
    assert all(path.name == "outputs" for path in tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_outputs_are_those_of_the_committed_cells(name):
    notebook = read(name)
    nbformat.validate(notebook)
    check_outputs(name, notebook)
    assert [cell.execution_count for cell in code_cells(notebook)] == [*range(1, len(code_cells(notebook)) + 1)]
    assert notebook.metadata[DIGEST] == source_digest(notebook), "python tests/run_notebooks.py"


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_small_and_says_nothing_of_the_machine_that_ran_it(name):
    text = (ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert not re.search(
        r"/(home|root|tmp|usr|work)/(?!aistudio)|site-packages", re.sub(r'"image/png": ".*"', "", text)
    )
    assert set(read(name).metadata) == {"kernelspec", "language_info", DIGEST}


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_begins_in_english_and_in_chinese_and_says_how_to_get_the_package(name):
    first, second, third, fourth = read(name).cells[:4]
    assert not CHINESE.search(first.source) and len(CHINESE.findall(second.source)) > 60
    assert "/home/aistudio" in third.source and fourth.source == read("evaluate").cells[3].source


@pytest.mark.parametrize("place", [".", "notebooks", "beside"])
def test_without_an_installation_the_package_of_the_clone_is_taken(place, tmp_path, monkeypatch):
    (tmp_path / "passl_xcit").symlink_to(ROOT)
    monkeypatch.chdir(tmp_path if place == "beside" else ROOT / place)
    monkeypatch.setattr(sys, "path", [])
    names = {}
    cell = read("evaluate").cells[3].source
    exec(cell, names)  # noqa: S102 (a cell of ours)
    assert str(ROOT) in [str(names["Path"](folder).resolve()) for folder in sys.path]
