"""tools/model_zoo.py prints, checks and writes the tables of published weights."""

import dataclasses
import json
import re

import pytest

from passl_xcit.modeling.zoo import entries, find
from passl_xcit.utils.errors import ConfigError
from tools import model_zoo
from tools.model_zoo import ROOT, main

# mmpretrain's table of XCiT, as its README prints it: model, Params (M), Flops (G).
MMPRETRAIN = """
xcit-nano-12-p16_3rdparty_in1k 3.05 0.56
xcit-nano-12-p16_3rdparty-dist_in1k 3.05 0.56
xcit-tiny-12-p16_3rdparty_in1k 6.72 1.24
xcit-tiny-12-p16_3rdparty-dist_in1k 6.72 1.24
xcit-nano-12-p16_3rdparty-dist_in1k-384px 3.05 1.64
xcit-nano-12-p8_3rdparty_in1k 3.05 2.16
xcit-nano-12-p8_3rdparty-dist_in1k 3.05 2.16
xcit-tiny-24-p16_3rdparty_in1k 12.12 2.34
xcit-tiny-24-p16_3rdparty-dist_in1k 12.12 2.34
xcit-tiny-12-p16_3rdparty-dist_in1k-384px 6.72 3.64
xcit-tiny-12-p8_3rdparty_in1k 6.71 4.81
xcit-tiny-12-p8_3rdparty-dist_in1k 6.71 4.81
xcit-small-12-p16_3rdparty_in1k 26.25 4.81
xcit-small-12-p16_3rdparty-dist_in1k 26.25 4.81
xcit-nano-12-p8_3rdparty-dist_in1k-384px 3.05 6.34
xcit-tiny-24-p16_3rdparty-dist_in1k-384px 12.12 6.87
xcit-small-24-p16_3rdparty_in1k 47.67 9.10
xcit-small-24-p16_3rdparty-dist_in1k 47.67 9.10
xcit-tiny-24-p8_3rdparty_in1k 12.11 9.21
xcit-tiny-24-p8_3rdparty-dist_in1k 12.11 9.21
xcit-tiny-12-p8_3rdparty-dist_in1k-384px 6.71 14.13
xcit-small-12-p16_3rdparty-dist_in1k-384px 26.25 14.14
xcit-medium-24-p16_3rdparty_in1k 84.40 16.13
xcit-medium-24-p16_3rdparty-dist_in1k 84.40 16.13
xcit-small-12-p8_3rdparty_in1k 26.21 18.69
xcit-small-12-p8_3rdparty-dist_in1k 26.21 18.69
xcit-small-24-p16_3rdparty-dist_in1k-384px 47.67 26.72
xcit-tiny-24-p8_3rdparty-dist_in1k-384px 12.11 27.05
xcit-small-24-p8_3rdparty_in1k 47.63 35.81
xcit-small-24-p8_3rdparty-dist_in1k 47.63 35.81
xcit-large-24-p16_3rdparty_in1k 189.10 35.86
xcit-large-24-p16_3rdparty-dist_in1k 189.10 35.86
xcit-medium-24-p16_3rdparty-dist_in1k-384px 84.40 47.39
xcit-small-12-p8_3rdparty-dist_in1k-384px 26.21 54.92
xcit-medium-24-p8_3rdparty_in1k 84.32 63.52
xcit-medium-24-p8_3rdparty-dist_in1k 84.32 63.52
xcit-small-24-p8_3rdparty-dist_in1k-384px 47.63 105.24
xcit-large-24-p16_3rdparty-dist_in1k-384px 189.10 105.35
xcit-large-24-p8_3rdparty_in1k 188.93 141.23
xcit-large-24-p8_3rdparty-dist_in1k 188.93 141.23
xcit-medium-24-p8_3rdparty-dist_in1k-384px 84.32 186.67
xcit-large-24-p8_3rdparty-dist_in1k-384px 188.93 415.00
"""


def printed(capsys, *flags):
    assert main(list(flags)) == 0
    return capsys.readouterr().out


def rows_of(table):
    """The cells of a text table's rows; cells have two spaces between them."""
    return [re.split(r"  +", line) for line in table.split("\n\n")[0].splitlines()[1:]]


# Printing.


def test_the_rows_of_mmpretrain_s_table_are_printed_to_the_last_digit_and_in_its_order(capsys):
    rows = rows_of(printed(capsys, "xcit*"))
    expected = [line.split(" ") for line in MMPRETRAIN.strip().splitlines()]
    assert len(expected) == 42
    assert [row[:3] for row in rows] == [[find(name).name, params, flops] for name, params, flops in expected]


def test_text_fits_a_terminal_and_has_all_weights(capsys):
    table = printed(capsys)
    assert max(map(len, table.splitlines())) <= 120
    assert [row[0] for row in rows_of(table)] == [entry.name for entry in entries()]
    assert not any(line.endswith(" ") for line in table.splitlines())


def test_a_row_of_text_has_sizes_accuracies_pipeline_and_file(capsys):
    row = rows_of(printed(capsys, "xcit_nano_12_p16_384_dist"))[0]
    expected = ["3.05", "1.64", "75.46", "92.67", "384 px, crop 1, bicubic", "mmpretrain 712db4d4"]
    assert row == ["xcit_nano_12_p16_384_dist", *expected]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("regnety*", ["regnety_160"]),
        ("CrossViT-9*", ["crossvit_9_240", "crossvit_9_dagger_240"]),
        ("xcit-nano-*384px", ["xcit_nano_12_p16_384_dist", "xcit_nano_12_p8_384_dist"]),
        ("crossvit_1[5-8]_dagger_384", ["crossvit_15_dagger_408", "crossvit_18_dagger_408"]),
        ("xcit_nano_12_p?_224", ["xcit_nano_12_p8_224"]),
    ],
)
def test_a_pattern_selects_by_names_and_aliases(pattern, names, capsys):
    assert [row[0] for row in rows_of(printed(capsys, pattern))] == names


def test_a_pattern_without_a_match_is_refused():
    with pytest.raises(ConfigError, match=r"no weight has a name or alias like 'resnet\*'"):
        main(["resnet*"])


def test_json_has_everything(capsys):
    listed = json.loads(printed(capsys, "--format", "json"))
    assert [item["name"] for item in listed] == [entry.name for entry in entries()]
    item = next(item for item in listed if item["name"] == "xcit_nano_12_p16_384_dist")
    assert (item["params"], item["flops"]) == (3053224, 1636347520)
    assert "xcit_nano_12_p16_384.fb_dist_in1k" in item["aliases"]
    assert item["weights"][0]["sha256"] == "712db4d4"
    measured = next(result for result in item["results"] if result["by"] == "mmpretrain")
    assert (measured["acc1"], measured["acc5"]) == (74.93, 92.42)
    assert (measured["pipeline"]["resize"], measured["pipeline"]["interpolation"]) == ([384, 384], "bicubic")
    assert item["evaluation"]["crop_ratio"] == 1.0


def test_markdown_has_every_accuracy_with_its_pipeline_and_every_address(capsys):
    lines = printed(capsys, "--format", "markdown").splitlines()
    row = next(line for line in lines if line.startswith("| `xcit_nano_12_p16_384_dist` |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:8] == [
        "3.05",
        "1.64",
        "384 px, crop 1, bicubic",
        "75.4",
        "75.46 / 92.67",
        "74.93 / 92.42 (squashed)",
        "75.46 / 92.70",
    ]
    for entry in entries():
        row = next(line for line in lines if line.startswith(f"| `{entry.name}` |"))
        assert all(f"[{file.dialect}]({file.url})" in row for file in entry.weights)


# Checking.


def test_every_number_is_that_of_the_real_model(capsys):
    assert printed(capsys, "--check") == "54 rows checked\n"


def test_a_wrong_number_is_named_and_the_exit_code_is_1(monkeypatch, capsys):
    wrong = [dataclasses.replace(find("xcit_nano_12_p16_224"), params=3053225)]
    wrong.append(dataclasses.replace(find("xcit_nano_12_p16_384_dist"), flops=557074560))
    monkeypatch.setattr(model_zoo, "entries", lambda: [*wrong, find("xcit_nano_12_p8_224")])
    assert main(["--check"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "xcit_nano_12_p16_224: params 3,053,225 in zoo.yaml, 3,053,224 counted",
        "xcit_nano_12_p16_384_dist: flops 557,074,560 in zoo.yaml, 1,636,347,520 counted",
    ]


# Writing.


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("docs/model_zoo.md", ["all", "others", "aliases"]), ("README.md", ["readme"]), ("README_cn.md", ["readme_cn"])],
)
def test_the_tables_in_the_documentation_are_those_of_zoo_yaml(name, blocks):
    page = (ROOT / name).read_text("utf-8")
    assert re.findall(r"model_zoo:begin (\w+)", page) == blocks
    assert model_zoo.with_tables(page) == page, "python tools/model_zoo.py --write"


@pytest.mark.parametrize(("name", "rows"), [("docs/model_zoo.md", 54 + 22 + 54), ("README.md", 14 + 12)])
def test_the_documentation_has_a_row_for_every_weight(name, rows):
    blocks = model_zoo.BLOCK.finditer((ROOT / name).read_text("utf-8"))
    assert sum(len(re.findall(r"^\| `", found[0], re.MULTILINE)) for found in blocks) == rows


def test_only_what_stands_between_the_markers_is_written(tmp_path):
    (tmp_path / "docs").mkdir()
    for name in model_zoo.FILES:
        page = "before\n<!-- model_zoo:begin readme -->\nold | row\n<!-- model_zoo:end -->\nafter 模型\n"
        (tmp_path / name).write_text(page, "utf-8")
    model_zoo.write(tmp_path)
    for name in model_zoo.FILES:
        page = (tmp_path / name).read_text("utf-8")
        assert page.startswith("before\n<!-- model_zoo:begin readme -->\n\n| model |")
        assert page.endswith("|\n\n<!-- model_zoo:end -->\nafter 模型\n")
        assert "old" not in page


def test_writing_takes_no_pattern(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--write", "xcit*"])
    assert "--write takes no pattern" in capsys.readouterr().err
