"""What checks have found, as a page for people and as JSON for programs."""

import textwrap
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

VERDICTS = ("ok", "warning", "error")  # from good to bad
WIDTH = 110


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        name: what was looked at, such as "memory".
        value: what was found, in a few words.
        verdict: one of VERDICTS. An error is what a run would end with, or give wrong numbers for.
        advice: what is wrong and what to do; empty where all is well.
    """

    name: str
    value: str
    verdict: str = "ok"
    advice: str = ""


class Table(NamedTuple):
    """Rows of texts below the findings, a part of the section's `data` that a person may want to read."""

    header: tuple
    rows: list


@dataclass
class Section:
    """Findings that belong together.

    Args:
        name: its title, and its key in JSON.
        findings: a list of Finding.
        table: a Table, or None.
        data: {key: JSON value} for programs.
    """

    name: str
    findings: list
    table: Optional[Table] = None
    data: dict = field(default_factory=dict)


def verdict_of(sections):
    """The worst verdict of all findings."""
    return max((finding.verdict for finding in _findings(sections)), key=VERDICTS.index, default="ok")


def as_json(sections):
    """{"verdict", "sections": {name: {"findings": [{"name", "value", "verdict", "advice"}], ...}}}"""
    return {
        "verdict": verdict_of(sections),
        "sections": {
            section.name: {"findings": [finding._asdict() for finding in section.findings], **section.data}
            for section in sections
        },
    }


def as_page(sections):
    """The lines of the page: section by section, and at the end what is not well and what to do."""
    lines = []
    for section in sections:
        names = max((len(finding.name) for finding in section.findings), default=0)
        lines.append(section.name)
        for finding in section.findings:
            lines += _wrapped(f"  {finding.verdict:<7}  {finding.name:<{names}}  ", finding.value)
        if section.table and section.table.rows:
            lines += ["", *_table_lines(section.table)]
        lines.append("")
    return lines + _summary(sections)


def _summary(sections):
    amiss = [finding for finding in _findings(sections) if finding.verdict != "ok"]
    amiss.sort(key=lambda finding: -VERDICTS.index(finding.verdict))
    counts = [sum(finding.verdict == verdict for finding in amiss) for verdict in ("error", "warning")]
    lines = [
        ", ".join(
            f"{count or 'no'} {word}{'' if count == 1 else 's'}" for count, word in zip(counts, ("error", "warning"))
        )
    ]
    for finding in amiss:
        lines += _wrapped(f"  {finding.verdict:<7}  ", f"{finding.name}: {finding.advice or finding.value}")
    return lines


def _findings(sections):
    return [finding for section in sections for finding in section.findings]


def _wrapped(start, text):
    options = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start), **options) or [start]


def _table_lines(table):
    rows = [table.header, *table.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.header))]
    return ["  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows]
