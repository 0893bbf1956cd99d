"""The file of a benchmark, and what is read off it."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from passl_xcit.engine.benchmark import pages
from passl_xcit.engine.benchmark.cases import COPIED, MATRIX, Case, cases_of, flops_of
from passl_xcit.engine.benchmark.contenders import OURS, PEERS, contenders_of
from passl_xcit.engine.benchmark.machine import describe_machine
from passl_xcit.engine.benchmark.record import NOTHING, VERSION, Record, read_record
from passl_xcit.utils.errors import ConfigError, DataError

NANO = Case("xcit_nano_12_p16_224", "inference", 16, 224, "float32", 2)
RESULT = {"seconds": [2.0, 4.0, 6.0], "build_seconds": 1.0, "first_step_seconds": 2.0}
RESULT.update(built_memory=10**9, peak_memory=2 * 10**9)
LIMIT = {**RESULT, "seconds": [2 * MATRIX**3 / 1e11, 2 * MATRIX**3 / 5e10], "difference": 0.0}  # 100 GFLOP/s at best


COPIES = {**RESULT, "seconds": [2 * COPIED / 1e10], "difference": 0.0}  # 10 GB/s


def measurement(case, results):
    return {"case": case._asdict(), "date": "2026-01-01", "bytes": 10**9, "results": results}


def record_of(results, case=NANO):
    measurements = [
        measurement(Case("", "matmul", 0, 0, "float32", 2), {"eager": LIMIT}),
        measurement(Case("", "copy", 0, 0, "float32", 2), {"eager": COPIES}),
        measurement(case, results),
    ]
    settings = {"contenders": list(results), "repeats": 3}
    head = {"version": VERSION, "machine": describe_machine(), "settings": settings}
    return {**head, **NOTHING, "measurements": measurements}


@pytest.fixture
def no_work(monkeypatch):
    """Cases are noted instead of measured."""
    measured = []

    def measure(case, contenders, repeats, log, told):
        measured.append(case)
        return {contender.name: {**RESULT, "difference": 0.0} for contender in contenders}

    monkeypatch.setattr("passl_xcit.engine.benchmark.record.measure", measure)
    return measured


def test_a_benchmark_that_was_stopped_measures_what_is_missing(tmp_path, no_work):
    path, contenders = tmp_path / "new" / "b.json", contenders_of(["eager"])
    one, two = (
        cases_of([NANO.model], ["inference"], [1], [32], ["float32"], [1], [1]),
        cases_of([NANO.model, "crossvit_9"], ["train"], [1], [32], ["float32"], [1], [1]),
    )
    Record(path, contenders, 3).measure_cases(one)
    Record(path, contenders, 3).measure_cases(one + two)
    assert [str(case) for case in no_work] == [
        "matmul float32, 1 thread",
        "copy float32, 1 thread",
        f"{NANO.model} inference float32, 32 px, batch 1, 1 thread",
        f"{NANO.model} train float32, 32 px, batch 1, 1 thread",
        "crossvit_9 train float32, 32 px, batch 1, 1 thread",
    ]
    assert [Case(**m["case"]) for m in read_record(path)["measurements"]] == no_work


@pytest.mark.parametrize("change", [{"repeats": 4}, {"contenders": contenders_of(["onednn"])}])
def test_a_file_that_was_measured_otherwise_is_not_gone_on_with(tmp_path, no_work, change):
    given = {"contenders": contenders_of(["eager"]), "repeats": 3}
    Record(tmp_path / "b.json", **given).measure_cases([NANO])
    before = (tmp_path / "b.json").read_bytes()
    with pytest.raises(ConfigError, match=f"b.json: was measured with {next(iter(change))} .*; give another file"):
        Record(tmp_path / "b.json", **{**given, **change})
    assert (tmp_path / "b.json").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file"),
        (b"{", "is no JSON"),
        (b"[1]", "is no file of tools/benchmark.py"),
        (json.dumps({"version": VERSION, **NOTHING}).encode(), "is no file of tools/benchmark.py"),
    ],
)
def test_what_is_no_benchmark_is_refused(tmp_path, content, reason):
    path = tmp_path / "b.json"
    if content:
        path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_record(path)


def test_a_table_tells_speeds_of_the_first_turn_by_turn_and_shares_of_the_limit():
    fast = {**RESULT, "seconds": [1.0, 1.0, 3.0], "difference": 2e-7}
    refused = {"error": "ConfigError: openvino: no model of that kind"}
    page = pages.tables(record_of({"eager": {**RESULT, "difference": 0.0}, "onednn": fast, "openvino": refused}))
    assert page[:4] == [
        "**xcit_nano_12_p16_224 inference float32, 224 px, batch 16, 2 threads**",
        "",
        "| contender | images/s | speed | range | of products | of copies | first step, s | memory, GB | difference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    # 16 images of 0.556 G multiply-adds in 4 s and in 1 s, of 100 GFLOP/s; 1 GB, of 10 GB/s.
    assert page[4] == "| `eager` | 4.0 | **1.00 x** | 1.00 to 1.00 | 4% | 2% | 3.0 | 2.00 | 0e+00 |"
    assert page[5] == "| `onednn` | 16.0 | **2.00 x** | 2.00 to 4.00 | 18% | 10% | 3.0 | 2.00 | 2e-07 |"
    assert page[6] == "\nNot measured: `openvino`, no model of that kind."


def test_a_page_gets_the_tables_of_the_files_that_its_blocks_name(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps(record_of({"eager": {**RESULT, "difference": 0.0}})))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- benchmark:begin b.json -->\nold\n<!-- benchmark:end -->\nafter\n")
    pages.write_page(page)
    once = page.read_text()
    assert "old" not in once and "| `eager` | 4.0 |" in once
    assert once.startswith("before\n") and once.endswith("\n<!-- benchmark:end -->\nafter\n")
    pages.write_page(page)
    assert page.read_text() == once


@pytest.mark.parametrize("name", ["benchmarks.md", "deploy.md"])
def test_the_shipped_page_holds_what_its_files_say(tmp_path, name):
    docs = Path(__file__).parents[3] / "docs"
    shutil.copytree(docs / "benchmarks", tmp_path / "benchmarks")
    (tmp_path / "images").mkdir()
    shutil.copy(docs / name, tmp_path)
    pages.write_page(tmp_path / name)
    assert (tmp_path / name).read_text("utf-8") == (docs / name).read_text("utf-8")


def test_a_page_without_a_block_or_with_a_block_of_no_file_is_refused(tmp_path):
    page = tmp_path / "page.md"
    with pytest.raises(DataError, match="page.md: cannot be read"):
        pages.write_page(page)
    page.write_text("text")
    with pytest.raises(DataError, match="page.md: has no block"):
        pages.write_page(page)
    page.write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="page.md: cannot be read: it is no UTF-8"):
        pages.write_page(page)
    page.write_text("<!-- benchmark:begin b.json -->\n<!-- benchmark:end -->")
    with pytest.raises(DataError, match="b.json: cannot be read"):
        pages.write_page(page)


@pytest.mark.parametrize("rest", ["", "\n<!-- benchmark:begin b.json -->\n<!-- benchmark:end -->\n"])
def test_a_block_without_its_end_takes_no_text_along(tmp_path, rest):
    (tmp_path / "b.json").write_text(json.dumps(record_of({"eager": {**RESULT, "difference": 0.0}})))
    page = tmp_path / "page.md"
    page.write_text(f"<!-- benchmark:begin b.json -->\nprose{rest}")
    with pytest.raises(DataError, match="page.md: has a block without its end"):
        pages.write_page(page)
    assert "prose" in page.read_text()


def test_a_share_above_the_limit_is_not_told():
    fast = {**RESULT, "seconds": [0.1], "difference": 0.0}  # 178 GFLOP/s of 100
    assert pages.tables(record_of({"eager": fast}))[4].split(" | ")[4] == "?"


def test_a_training_step_counts_three_times_the_products():
    forward, training = flops_of(NANO), flops_of(NANO._replace(mode="train"))
    assert forward == pytest.approx(16 * 0.556e9, rel=0.01)  # seed of the model zoo: 0.56 G an image
    assert training == 3 * forward


def test_the_limit_is_the_fastest_turn_of_any_contender():
    slower = {**LIMIT, "seconds": [3 * seconds for seconds in LIMIT["seconds"]]}
    record = record_of({})
    record["measurements"][0]["results"] = {"eager": slower, "timm-eager": LIMIT, "onednn": {"error": "no"}}
    assert pages.limits_of(record) == {("float32", 2): pytest.approx(1e11), ("copy", 2): pytest.approx(1e10)}


def test_the_machine_is_described_without_names_of_hosts_or_paths():
    text = json.dumps(describe_machine())
    assert str(Path.home()) not in text and "paddlepaddle" in text
    assert describe_machine()["cores"] >= 1


def test_the_machine_says_whether_native_operators_are_in_use(monkeypatch):
    monkeypatch.setenv("PASSL_XCIT_NATIVE", "off")
    assert describe_machine()["native_operators"] == "not in use"
    told = pages.machine_lines(record_of({"eager": {**RESULT, "difference": 0.0}}))[0]
    assert "; native operators not in use. 3 turns each." in told


def test_every_contender_has_a_worker():
    for contender in contenders_of([*OURS, *PEERS]):
        assert contender.script.is_file()


@pytest.mark.parametrize(
    ("names", "python", "reason"),
    [
        (["egaer"], None, "egaer: there is no such contender; expected eager"),
        (["eager", "eager"], None, "eager: is named twice"),
        (["eager"], "/nowhere/python", "--peer_python /nowhere/python: there is no such file"),
    ],
)
def test_contenders_that_there_are_not_are_refused(names, python, reason):
    with pytest.raises(ConfigError, match=reason):
        contenders_of(names, python)


@pytest.mark.parametrize(
    ("modes", "precisions", "reason"),
    [
        (["infer"], ["float32"], "infer: there is no such mode"),
        (["train"], ["fp16"], "fp16: there is no such precision"),
    ],
)
def test_modes_and_precisions_that_there_are_not_are_refused(modes, precisions, reason):
    with pytest.raises(ConfigError, match=reason):
        cases_of(["xcit_nano_12_p16"], modes, [1], [32], precisions, [1], [1])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["inference", "train"])
def test_our_model_its_export_and_the_textbook_are_measured_in_one_run(tmp_path, mode):
    names = ["eager", "onednn", "textbook"]
    case = Case("xcit_nano_12_p16", mode, 1, 32, "float32", 1)
    record = Record(tmp_path / "b.json", contenders_of(names), 2)
    record.measure_cases([case])
    results = record.data["measurements"][0]["results"]
    assert results["textbook"]["difference"] < 1e-5
    assert len(results["textbook"]["seconds"]) == len(results["eager"]["seconds"]) == 2
    if mode == "train":
        assert results["onednn"]["error"] == "ConfigError: onednn: an exported program cannot be trained"
    else:
        assert results["onednn"]["difference"] < 1e-5


@pytest.mark.slow
def test_a_python_without_timm_is_told(tmp_path):
    case = Case("xcit_nano_12_p16", "inference", 1, 32, "float32", 1)
    record = Record(tmp_path / "b.json", contenders_of(["timm-eager"], sys.executable), 1)
    record.measure_cases([case])
    error = record.data["measurements"][0]["results"]["timm-eager"]["error"]
    said = "ModuleNotFoundError: No module named 'timm'"
    assert error == f"the process ended without an answer (exit code 1): {said}; see {tmp_path / 'b.log'}"


def test_a_program_that_is_no_python_is_told(tmp_path):
    case = Case("xcit_nano_12_p16", "inference", 1, 32, "float32", 1)
    record = Record(tmp_path / "b.json", contenders_of(["timm-eager"], "/bin/echo"), 1)
    record.measure_cases([case])
    error = record.data["measurements"][0]["results"]["timm-eager"]["error"]
    assert error.startswith("the process is no worker of this benchmark: it said '")


def test_a_section_of_something_else_is_not_shown_for_what_was_asked(tmp_path):
    def measure(repeats, told):
        return {"seconds": [repeats]}

    Record(tmp_path / "b.json", [], 3).measure_section("operators", {"models": ["a"]}, measure)
    Record(tmp_path / "b.json", [], 3).measure_section("operators", {"models": ["a"]}, None)
    with pytest.raises(ConfigError, match="b.json: has operators of {'models': \\['a'\\]}, not of .*give another file"):
        Record(tmp_path / "b.json", [], 3).measure_section("operators", {"models": ["b"]}, measure)
