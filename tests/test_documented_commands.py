"""The commands of the README and of docs/: the tools take their flags, and the project's files that they name exist."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("README*.md"), *ROOT.glob("docs/*.md"), ROOT / "weights" / "README.md"])
OURS = ("configs", "docs", "notebooks", "passl_xcit", "tests", "tools", "weights")  # folders whose files are committed


def commands_of(text):
    """[(tool, arguments)] of the lines `python tools/<tool>.py ...` of a page, launched or not; a backslash goes on."""
    lines = re.sub(r"\|[\w|]+", "", re.sub(r"\\\n\s*", " ", text)).splitlines()  # of `a|b` the first
    launch = r"(?:-m paddle\.distributed\.launch (?:.+ )?)?"
    found = [re.match(rf"\s*(?:\S*/)?python {launch}tools/(\w+)\.py\b(.*)", line) for line in lines]
    return [(match[1], shlex.split(match[2], comments=True)) for match in found if match]


def paths_in(text):
    """What looks like a file of the project: in a command, between backticks or behind a link."""
    return sorted(set(re.findall(rf"(?<![\w/.-])(?:{'|'.join(OURS)})/[\w./-]*\w\.(?:py|yaml|md|png|pdparams)\b", text)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tools_take_the_arguments_of_the_documented_commands(page):
    for tool, arguments in commands_of(page.read_text(encoding="utf-8")):
        try:
            importlib.import_module(f"tools.{tool}").parse_args(arguments)
        except SystemExit as error:
            assert error.code in (0, None), f"{page.name}: tools/{tool}.py {' '.join(arguments)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    assert [path for path in paths_in(text) if not (ROOT / path).exists()] == []
    relative = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text)
    assert [link for link in relative if not (page.parent / link).exists()] == []


def test_commands_and_files_are_found():
    command = "    .venv/bin/python tools/train.py -c a.yaml \\\n        --distribute True|False    # so"
    text = f"run\n\n{command}\nsee `tools/train.py`, outputs/x.png"
    assert commands_of(text) == [("train", ["-c", "a.yaml", "--distribute", "True"])]
    launched = "python -m paddle.distributed.launch --devices 0,1 \\\n    tools/validate.py a.yaml b.pdparams"
    assert commands_of(launched) == [("validate", ["a.yaml", "b.pdparams"])]
    assert paths_in(text) == ["tools/train.py"]
    assert sum(len(commands_of(page.read_text(encoding="utf-8"))) for page in PAGES) > 10
