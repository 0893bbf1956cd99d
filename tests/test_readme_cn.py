"""README_cn.md says what README.md says: sections, commands, code, output, tables and links are the same."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def pages():
    return [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_cn.md")]


def parts_of(page):
    """(level of the heading, what lies below it) of each section."""
    headings = list(re.finditer(r"^(#+) .*$", FENCED.sub(lambda block: " " * len(block[0]), page), re.MULTILINE))
    ends = [heading.start() for heading in headings[1:]] + [len(page)]
    return [(len(heading[1]), page[heading.end() : end]) for heading, end in zip(headings, ends)]


def without_comments(code):
    """The lines of `code` without what stands behind a `#`, which may be in another language."""
    return [re.sub(r"(^|\s+)#.*", "", line) for line in code.splitlines()]


def code_in(text):
    """Code, output and indented commands, without comments."""
    indented = [line for line in FENCED.sub("", text).splitlines() if re.match(r" {4}\S", line)]
    return [without_comments(block) for block in FENCED.findall(text)], without_comments("\n".join(indented))


def table_rows(text):
    """The tables' rows, without words: code between backticks and numbers."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [re.findall(r"`[^`]+`|\d[\d.]*", row) for row in rows]


def links_in(text):
    """The places that links and pictures lead to, but for the other README, and how often."""
    return Counter(re.findall(r"\]\(([^)]+)\)", text)) - Counter(["README.md", "README_cn.md"])


def names_in(text):
    """Commands, flags, files and numbers of exit codes between backticks; words that are translated are not."""
    return {
        name
        for name in re.findall(r"`([^`\n]+)`", FENCED.sub("", text))
        if not CHINESE.search(name) and "<" not in name
    }


@pytest.mark.parametrize("part", [code_in, table_rows, links_in], ids=lambda function: function.__name__)
def test_each_section_has_the_same(part, pages):
    english, chinese = map(parts_of, pages)
    assert [level for level, _ in english] == [level for level, _ in chinese]
    for (_, theirs), (_, ours) in zip(english, chinese):
        assert part(ours) == part(theirs)


def test_each_section_names_the_same_things(pages):
    for (_, theirs), (_, ours) in zip(*map(parts_of, pages)):
        translated = {"path label"}
        assert names_in(ours) == names_in(theirs) - translated


def test_each_paragraph_of_the_chinese_page_is_chinese(pages):
    prose = re.sub(r"<!--.*?-->", "", FENCED.sub("", pages[1]))
    paragraphs = [
        text for text in re.split(r"\n\n+", prose) if text.strip() and not re.match(r"\||    |#+ passl_xcit", text)
    ]
    assert len(paragraphs) > 30 and all(CHINESE.search(text) for text in paragraphs)


def test_what_a_translation_forgets_is_noticed():
    code = "    python a.py  # so\n\n```python\nx = 1  # so\n```"
    text = f"# A\n\n## B\n\n{code}\n\n| `a` | 1.5 |\n\nSee [this](b.md), `-o`."
    (_, first), (level, section) = parts_of(text)
    assert (first.strip(), level) == ("", 2)
    assert code_in(section) == ([["```python", "x = 1", "```"]], ["    python a.py"])
    assert table_rows(section) == [["`a`", "1.5"]]
    assert links_in(section) == {"b.md": 1} and names_in(section) == {"a", "-o"}
