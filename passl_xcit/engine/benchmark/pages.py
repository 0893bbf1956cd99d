"""A benchmark as Markdown: tables of ratios, each beside the machine's limit."""

import re
import statistics
from pathlib import Path

from passl_xcit.engine.benchmark.cases import COPIED, MATRIX, Case, flops_of
from passl_xcit.engine.benchmark.contenders import OURS, PEERS
from passl_xcit.engine.benchmark.measure import ratios
from passl_xcit.engine.benchmark.pipeline import pipeline_lines
from passl_xcit.engine.benchmark.record import read_record
from passl_xcit.engine.benchmark.startup import startup_lines
from passl_xcit.utils.errors import DataError
from passl_xcit.utils.new_file import replace_file

BLOCK = re.compile(r"(<!-- benchmark:begin (\S+) -->\n).*?(<!-- benchmark:end -->)", re.DOTALL)
COLUMNS = ("contender", "images/s", "speed", "range", "of the limit", "first step, s", "memory, GB", "difference")


def write_page(path):
    """Fill a Markdown page's blocks, `<!-- benchmark:begin FILE.json -->` to `<!-- benchmark:end -->`, from its files.

    Raises:
        DataError: the page cannot be read, has no block, or names a file that is no benchmark beside it.
        CheckpointError: it cannot be written.
    """
    path = Path(path)
    try:
        page = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not BLOCK.search(page):
        raise DataError(f"{path}: has no block <!-- benchmark:begin FILE.json --> ... <!-- benchmark:end -->")
    filled = with_tables(page, path.parent)
    replace_file(path, lambda file: file.write(filled.encode()))


def with_tables(page, folder):
    """The text `page` with what its blocks name; files lie in or below `folder`."""

    def filled(block):
        lines = page_of(read_record(folder / block[2]))
        return "\n".join([block[1], *lines, "", block[3]])

    return BLOCK.sub(filled, page)


def page_of(record):
    """Markdown lines: the machine, and a table for whatever was measured."""
    lines = machine_lines(record)
    for found in (tables(record), _section(record, "pipeline"), _section(record, "startup")):
        lines += ["", *found] if found else []
    return lines


def _section(record, name):
    make = {"pipeline": pipeline_lines, "startup": startup_lines}[name]
    return make(record[name]["found"]) if record[name] else []


def machine_lines(record):
    """Markdown: what was measured on, with the limits."""
    machine, settings = record["machine"], record["settings"]
    versions = ", ".join(f"{key} {machine[key]}" for key in list(machine)[list(machine).index("system") + 1 :])
    sets = ", ".join(machine["instruction_sets"])
    lines = [
        f"Processor: {machine['processor']} ({sets}), {machine['cores']} cores used, {machine['memory_gb']} GB; "
        f"{machine['system']}; {versions}. {settings['threads']} threads, {settings['repeats']} turns each."
    ]
    limits = limits_of(record)
    told = [f"{value / 1e9:.0f} GFLOP/s in {key}" for key, value in limits.items() if key != "copy"]
    if told:
        lines.append(f"Matrix products of {MATRIX} x {MATRIX}: {', '.join(told)} (a multiply-add is 2 FLOP).")
    if "copy" in limits:
        lines.append(f"Copies: {limits['copy'] / 1e9:.1f} GB/s read and written.")
    return lines


def limits_of(record):
    """{precision: FLOP/s, "copy": bytes/s}: the fastest turn of any contender."""
    limits = {}
    for measurement in record["measurements"]:
        case = Case(**measurement["case"])
        work = {"matmul": 2 * MATRIX**3, "copy": 2 * COPIED}.get(case.mode)
        fastest = min((min(r["seconds"]) for r in measurement["results"].values() if r.get("seconds")), default=None)
        if work and fastest:
            limits["copy" if case.mode == "copy" else case.precision] = work / fastest
    return limits


def tables(record):
    """Markdown lines: a table for each case with a model."""
    limits, lines = limits_of(record), []
    for measurement in record["measurements"]:
        case = Case(**measurement["case"])
        if case.model:
            lines += [f"**{case}**", "", *_table(case, measurement["results"], limits), ""]
    return lines[:-1]


def _table(case, results, limits):
    head = [f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS)]
    first = next((result["seconds"] for result in results.values() if result.get("seconds")), None)
    rows = [_row(name, result, first, case, limits) for name, result in results.items() if "error" not in result]
    refused = [f"\n`{name}`: {result['error']}" for name, result in results.items() if "error" in result]
    return [*head, *rows, *refused]


def _row(name, result, first, case, limits):
    median, low, high = ratios(result["seconds"], first)
    seconds = statistics.median(result["seconds"])
    limit = limits.get(case.precision)
    work = 2 * flops_of(case)
    share = f"{work / seconds / limit:.0%}" if limit else "?"
    memory = f"{result['peak_memory'] / 1e9:.2f}" if result["peak_memory"] else "?"
    cells = [
        f"`{name}`",
        f"{case.batch_size / seconds:.1f}",
        f"**{median:.2f} x**",
        f"{low:.2f} to {high:.2f}",
        share,
        f"{result['build_seconds'] + result['first_step_seconds']:.1f}",
        memory,
        f"{result['difference']:.0e}",
    ]
    return f"| {' | '.join(cells)} |"


def contender_lines(record):
    """Markdown: what the names of the contenders mean."""
    meanings = {**OURS, **PEERS}
    return [f"- `{name}`: {meanings[name]}" for name in record["settings"]["contenders"]]
