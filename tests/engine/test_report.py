"""Findings as a page and as JSON."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passl_xcit.engine.report import VERDICTS, WIDTH, Finding, Section, Table, as_json, as_page, verdict_of

MACHINE = Section("machine", [Finding("memory", "2 GiB"), Finding("disk", "0 bytes free", "error", "the disk is full")])
DEVICE = Section("device", [Finding("seen", "cpu, npu:0", "warning", "one is hidden")], data={"count": 2})


def test_the_page_has_the_sections_in_columns_and_at_the_end_what_to_do_errors_first():
    assert as_page([DEVICE, MACHINE]) == [
        "device",
        "  warning  seen  cpu, npu:0",
        "",
        "machine",
        "  ok       memory  2 GiB",
        "  error    disk    0 bytes free",
        "",
        "1 error, 1 warning",
        "  error    disk: the disk is full",
        "  warning  seen: one is hidden",
    ]


def test_a_table_stands_below_its_section_in_columns():
    table = Table(("image", "why"), [["a/1.jpg", "empty"], ["b.jpg", "truncated"]])
    assert as_page([Section("data", [Finding("train", "2 images")], table)])[:6] == [
        "data",
        "  ok       train  2 images",
        "",
        "  image    why",
        "  a/1.jpg  empty",
        "  b.jpg    truncated",
    ]


def test_where_all_is_well_the_last_line_says_so():
    assert as_page([Section("machine", [Finding("memory", "2 GiB")])])[-1] == "no errors, no warnings"


def test_long_texts_are_broken_between_words_under_their_beginning():
    lines = as_page([Section("machine", [Finding("path", " ".join(["word"] * 40))])])
    assert all(len(line) <= WIDTH for line in lines)
    assert lines[1].startswith("  ok       path  word") and lines[2].startswith(" " * 17 + "word")


@given(st.lists(st.sampled_from(VERDICTS)))
def test_the_verdict_is_the_worst_one(verdicts):
    sections = [Section(str(place), [Finding("x", "y", verdict)]) for place, verdict in enumerate(verdicts)]
    expected = next((worst for worst in ("error", "warning") if worst in verdicts), "ok")
    assert verdict_of(sections) == as_json(sections)["verdict"] == expected


def test_json_has_the_findings_and_what_else_a_section_knows():
    tree = json.loads(json.dumps(as_json([MACHINE, DEVICE])))
    assert list(tree["sections"]) == ["machine", "device"]
    finding = {"name": "disk", "value": "0 bytes free", "verdict": "error", "advice": "the disk is full"}
    assert tree["sections"]["machine"] == {
        "findings": [{"name": "memory", "value": "2 GiB", "verdict": "ok", "advice": ""}, finding]
    }
    assert tree["sections"]["device"]["count"] == 2


@pytest.mark.parametrize("value", ["", "x" * 500])
def test_every_finding_has_a_line(value):
    assert any("here" in line for line in as_page([Section("machine", [Finding("here", value)])]))
