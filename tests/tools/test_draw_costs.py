"""The picture of what images cost: its slopes, a measured point, and the page that shows it."""

import json
import re
import statistics

import pytest
from PIL import Image
from tiny_run import ROOT, start

from passl_xcit.utils.errors import ConfigError
from tools.draw_costs import SIZES, large, main, medians, slope

MEASURED = ROOT / "docs" / "costs.json"


@pytest.fixture(scope="module")
def points():
    return json.loads(MEASURED.read_text())["points"]


@pytest.mark.parametrize("exponent", [1.0, 2.0, 0.5])
def test_a_slope_is_the_exponent_from_a_thousand_tokens_on(exponent):
    tokens = [10, 100, 1000, 2000, 9216]
    values = [7.0, 7.0, *(3.0 * count**exponent for count in tokens[2:])]
    assert slope(tokens, values) == pytest.approx(exponent)
    assert large(tokens, values)[0] == (1000, 2000, 9216)


def test_all_points_were_measured_five_times(points):
    assert {(point["model"], point["pixels"]) for point in points} == {(m, side) for m in SIZES for side in SIZES[m]}
    for point in points:
        patch = int(point["model"].rpartition("_p")[2])
        assert point["tokens"] == (point["pixels"] // patch) ** 2
        assert len(point["seconds"]) == len(point["bytes"]) == 5


def test_the_picture_is_drawn_and_the_slopes_are_told(tmp_path, capsys, points):
    main([str(MEASURED), "--output", str(tmp_path / "costs.png")])
    assert Image.open(tmp_path / "costs.png").size == Image.open(ROOT / "docs" / "images" / "costs.png").size
    told = re.findall(r"(seconds|bytes) ~ tokens \^ ([\d.]+)\n", capsys.readouterr().out)
    expected = [(key, f"{slope(*medians(points, model, key)):.2f}") for key in ("seconds", "bytes") for model in SIZES]
    assert told == expected


def test_the_page_says_what_was_measured(points):
    page = (ROOT / "docs" / "large_images.md").read_text()
    found = {(p["model"], p["pixels"]): [statistics.median(p[key]) for key in ("seconds", "bytes")] for p in points}
    rows = re.findall(
        r"\| (\d+) x \d+ \| ([\d,]+) \| ([\d.]+) s(?:, ([\d,]+) MB)? \| ([\d.]+) s(?:, ([\d,]+) MB)? \| ", page
    )
    assert len(rows) == 4
    for pixels, tokens, *numbers in rows:
        assert int(tokens.replace(",", "")) == (int(pixels) // 16) ** 2
        expected = [value for model in ("xcit", "vit") for value in found[f"{model}_nano_12_p16", int(pixels)]]
        for said, value, unit in zip(numbers, expected, (1, 1e6, 1, 1e6)):
            assert not said or float(said.replace(",", "")) == pytest.approx(
                value / unit, abs=0.5 if unit > 1 else 0.0051
            )
    slopes = [
        f"{slope(*medians(points, f'{m}_nano_12_p16', key)):.2f}"
        for m in ("xcit", "vit")
        for key in ("seconds", "bytes")
    ]
    text = " ".join(page.split())
    assert f"to the power {slopes[0]} and its memory to {slopes[1]}; the ViT's to {slopes[2]} and {slopes[3]}." in text


@pytest.mark.slow
@pytest.mark.parametrize("model", ["xcit_nano_12_p16", "vit_nano_12_p16"])
def test_a_point_is_measured(model):
    output, errors = start("--point", model, 96, before=[ROOT / "tools" / "draw_costs.py"]).communicate(timeout=100)
    point = json.loads(output or errors)
    assert point["tokens"] == 36 and 0 < point["seconds"] < 100 and point["bytes"] >= 0


@pytest.mark.parametrize("arguments", [[], ["a.json"], ["--measure", "a.json", "b.json", "--output", "c.png"]])
def test_one_thing_at_a_time(arguments):
    with pytest.raises(ConfigError, match="give --measure FILE.json, or FILE.json and --output PICTURE.png"):
        main(arguments)
