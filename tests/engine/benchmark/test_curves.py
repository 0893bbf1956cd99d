"""Curves of a benchmark: tables, slopes and pictures."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from passl_xcit.engine.benchmark import pages
from passl_xcit.engine.benchmark.cases import Case
from passl_xcit.engine.benchmark.curves import CURVES, curve_lines, lines_of, slope, tokens_of
from passl_xcit.engine.benchmark.record import NOTHING, VERSION
from passl_xcit.utils.errors import ConfigError, DataError

P16 = Case("xcit_nano_12_p16", "inference", 1, 224, "float32", 1)
P8 = P16._replace(model="xcit_nano_12_p8")
MACHINE = {"processor": "P", "instruction_sets": [], "native_operators": "in use", "cores": 2, "memory_gb": 1}
MACHINE.update(system="S", python="3")


def result(seconds, megabytes=1.0):
    built = 10**8
    memory = {"built_memory": built, "peak_memory": built + round(1e6 * megabytes)}
    return {"seconds": [seconds] * 3, "build_seconds": 0.1, "first_step_seconds": 0.1, "difference": 0.0, **memory}


def record_of(*found):
    measurements = [{"case": case._asdict(), "date": "", "bytes": 1, "results": results} for case, results in found]
    return {"version": VERSION, "machine": MACHINE, "settings": {"repeats": 3}, **NOTHING, "measurements": measurements}


def along_tokens():
    """Time grows as the tokens and memory as their square; the second model begins with more of them."""
    sizes = [(P16._replace(image_size=size), (size // 16) ** 2) for size in (224, 448, 1024)]
    sizes += [(P8._replace(image_size=size), (size // 8) ** 2) for size in (224, 512)]
    return record_of(*((case, {"eager": result(n / 1e3, n**2 / 1e4), "onednn": {"error": "no"}}) for case, n in sizes))


@given(st.floats(-2, 2), st.floats(0.01, 100), st.lists(st.integers(1, 10**5), min_size=2, max_size=8, unique=True))
def test_the_slope_of_a_power_is_its_exponent(exponent, factor, places):
    assert slope({place: factor * place**exponent for place in places}) == pytest.approx(exponent, abs=1e-6)


def test_a_slope_may_leave_small_places_out_and_needs_two():
    points = {10: 5.0, 1000: 1.0, 2000: 2.0}
    assert slope(points, 1000) == pytest.approx(1.0)
    assert slope(points, 1001) is None


def test_a_table_has_a_row_a_line_with_what_differs_and_the_slopes():
    time, memory = "\n".join(curve_lines(along_tokens(), "tokens")).split("\n\n")
    assert time.splitlines() == [
        "| ms of an image | 196 | 784 | 4,096 | slope | slope from 1,000 on |",
        "| --- | --- | --- | --- | --- | --- |",
        "| xcit_nano_12_p16 | 196.0 | 784.0 | 4,096.0 | 1.00 |  |",
        "| xcit_nano_12_p8 |  | 784.0 | 4,096.0 | 1.00 |  |",
    ]
    assert memory.splitlines()[2] == "| xcit_nano_12_p16 | 3.8 | 61.5 | 1,677.7 | 2.00 |  |"


def test_batches_are_images_a_second_of_all_processes():
    crews = [P16, P16._replace(threads=2), P16._replace(processes=2)]
    found = [(crew._replace(batch_size=n), {"eager": result(0.1)}) for crew in crews for n in (1, 4)]
    assert curve_lines(record_of(*found), "batches") == [
        "| images/s | 1 | 4 |",
        "| --- | --- | --- |",
        "| 1 thread | 10.0 | 40.0 |",
        "| 2 threads | 10.0 | 40.0 |",
        "| 2 processes of 1 thread | 20.0 | 80.0 |",
    ]


def test_what_all_lines_have_in_common_is_not_told_but_one_line_has_a_name():
    assert list(
        lines_of(record_of((P16, {"eager": result(1.0)})), CURVES["batches"], CURVES["batches"].quantities[0])
    ) == ["xcit_nano_12_p16"]


def test_memory_that_the_system_does_not_tell_is_left_out():
    unknown = {**result(1.0), "peak_memory": None, "built_memory": None}
    time, memory = CURVES["tokens"].quantities
    record = record_of((P16, {"eager": unknown}))
    assert lines_of(record, CURVES["tokens"], memory) == {}
    assert lines_of(record, CURVES["tokens"], time) == {"xcit_nano_12_p16": {196: 1000.0}}


def test_models_with_patches_of_two_sizes_have_no_curve_along_tokens():
    with pytest.raises(DataError, match="crossvit_9_240: there are no curves along tokens"):
        tokens_of(P16._replace(model="crossvit_9_240"))


def page_with(tmp_path, form, record):
    (tmp_path / "b.json").write_text(json.dumps(record))
    page = tmp_path / "page.md"
    page.write_text(f"<!-- benchmark:begin b.json {form} -->\n<!-- benchmark:end -->\n")
    return page


@pytest.mark.parametrize("along", CURVES)
def test_a_block_gets_the_table_and_a_picture_beside_the_page(tmp_path, along):
    page = page_with(tmp_path, f"{along} curve.png", along_tokens())
    pages.write_page(page)
    assert f"![{CURVES[along].title}](curve.png)" in page.read_text()
    with Image.open(tmp_path / "curve.png") as picture:
        assert min(picture.size) > 300 and len(picture.getcolors(2**20)) > 10
    once = page.read_text(), (tmp_path / "curve.png").read_bytes()
    pages.write_page(page)
    assert once == (page.read_text(), (tmp_path / "curve.png").read_bytes())


def test_a_block_of_speeds_gets_contenders_against_cases(tmp_path):
    half = P16._replace(precision="bfloat16")
    slow, fast = result(1.0), {**result(0.5), "seconds": [0.25, 0.5, 0.5]}
    found = [(P16, {"portable": slow, "eager": fast}), (P8, {"portable": slow, "eager": {"error": "no"}})]
    page = page_with(tmp_path, "speeds", record_of(*found, (half, {"portable": {"error": "no"}, "eager": fast})))
    pages.write_page(page)
    lines = page.read_text().splitlines()
    assert "| float32 | xcit_nano_12_p16 | xcit_nano_12_p8 |" in lines
    assert "| `portable` | 1.0 images/s | 1.0 images/s |" in lines
    assert "| `eager` | 2.00 (2.00 to 4.00) |  |" in lines
    assert lines[-4:-2] == ["| --- | --- |", "| `eager` | 2.0 images/s |"]  # bfloat16: who cannot is not in the table


@pytest.mark.parametrize("form", ["tokens", "speeds curve.png", "cores curve.png", "tokens curve.png more"])
def test_a_block_of_another_form_is_refused(tmp_path, form):
    with pytest.raises(DataError, match=f"benchmark:begin b.json {form}: expected FILE.json, FILE.json speeds"):
        pages.write_page(page_with(tmp_path, form, along_tokens()))


def test_a_picture_that_cannot_be_written_is_told_and_the_page_stays(tmp_path):
    page = page_with(tmp_path, "tokens nowhere/curve.png", along_tokens())
    before = page.read_text()
    with pytest.raises(ConfigError, match="--write_page .*nowhere/curve.png: No such file"):
        pages.write_page(page)
    assert page.read_text() == before
