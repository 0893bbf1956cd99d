"""The commands that the project's pages, notebooks and configs show."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import nbformat

ROOT = Path(__file__).resolve().parents[1]
MARKDOWN = [path for pattern in ("*.md", "docs/*.md", "weights/*.md") for path in sorted(ROOT.glob(pattern))]
MARKDOWN.remove(ROOT / "CHANGELOG.md")  # of what was, not of what is
CONFIGS = [
    path for path in sorted(ROOT.glob("configs/*/*.yaml")) if "python tools/" in path.read_text(encoding="utf-8")
]
PAGES = [*MARKDOWN, *sorted(ROOT.glob("notebooks/*.ipynb")), *CONFIGS]
LAUNCH = r"python -m paddle\.distributed\.launch (?:\S+ )*?"
TOOL = re.compile(rf"(?:\S+ .* \| )?(?:(?:\S*/)?(?:{LAUNCH}|python ))?tools/(\w+)\.py(?: (.*))?$")
INSTALLED = re.compile(r"passl-xcit-([\w-]+)(?: (.*))?$")
PROGRAMS = r"(?:\S*/)?(?:python3?|pip|make|find|git|docker|export|visualdl|ruff|passl-xcit-[\w-]+|jupyter)"


class Command(NamedTuple):
    """A tool of `tools/` with its arguments, as a line of a page calls it."""

    tool: str
    arguments: list
    line: str


def text_of(page):
    """A page's text; of a notebook, that of its cells which are no code; of a config, its comments."""
    if page.suffix == ".yaml":
        return re.sub(r"^#|^[^#\n].*$", " ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if page.suffix != ".ipynb":
        return page.read_text(encoding="utf-8")
    cells = nbformat.read(page, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def shell_lines(text):
    """The indented lines, and the texts between backticks, that call a program; a backslash goes on."""
    text = re.sub(r"\|[\w|]+", "", re.sub(r"\s*\\\n\s*", " ", text))  # of `a|b` the first
    indented = re.findall(rf"^ {{4,}}({PROGRAMS} .*)$", text, re.MULTILINE)
    quoted = re.findall(rf"`((?:{PROGRAMS} |tools/\w+\.py )[^`\n]+)`", text)
    return [re.sub(r"\s+#.*", "", line).strip() for line in [*indented, *quoted]]


def command_of(line):
    """The Command that a line of a shell is, or None for another program."""
    found = TOOL.match(line) or INSTALLED.match(line)
    return Command(found[1].replace("-", "_"), shlex.split(found[2] or ""), line) if found else None


def commands_of(text):
    return [command for command in map(command_of, shell_lines(text)) if command]
