"""A benchmark as Markdown: tables of ratios, each beside the machine's limits, and curves with their pictures."""

import re
import statistics
from pathlib import Path

from passl_xcit.engine.benchmark.cases import COPIED, MATRIX, Case, flops_of
from passl_xcit.engine.benchmark.curves import CURVES, curve_lines, draw_curves, short_names
from passl_xcit.engine.benchmark.measure import ratios
from passl_xcit.engine.benchmark.operators import operator_lines
from passl_xcit.engine.benchmark.pipeline import pipeline_lines
from passl_xcit.engine.benchmark.record import read_record
from passl_xcit.engine.benchmark.startup import startup_lines
from passl_xcit.utils.errors import DataError
from passl_xcit.utils.new_file import replace_file

BLOCK = re.compile(r"(<!-- benchmark:begin (\S+)((?: \S+)*) -->\n).*?(<!-- benchmark:end -->)", re.DOTALL)
FORMS = "FILE.json, FILE.json speeds, or FILE.json tokens PICTURE.png and FILE.json batches PICTURE.png"
SECTIONS = {"pipeline": pipeline_lines, "startup": startup_lines, "operators": operator_lines}
COLUMNS = ("contender", "images/s", "speed", "range", "of products", "of copies", "first step, s", "memory, GB")
COLUMNS += ("difference",)


def write_page(path):
    """Fill a Markdown page's blocks from their files, and draw their pictures.

    A block is `<!-- benchmark:begin WHAT -->` to `<!-- benchmark:end -->`, with one of FORMS for WHAT; files lie in or
    below the page's folder. A file alone gives everything in it, "speeds" a table of contenders against cases, "tokens"
    and "batches" curves.

    Raises:
        DataError: the page cannot be read, has no block or one of another form, or names a file that is no benchmark.
        CheckpointError: it cannot be written.
        ConfigError: a picture cannot be written.
    """
    path = Path(path)
    try:
        page = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'it is no UTF-8'}") from error
    blocks = len(BLOCK.findall(page))
    if page.count("<!-- benchmark:begin ") != blocks:
        raise DataError(f"{path}: has a block without its end, <!-- benchmark:end -->, or without a file's name")
    if not blocks:
        raise DataError(f"{path}: has no block <!-- benchmark:begin FILE.json --> ... <!-- benchmark:end -->")

    def filled(block):
        return "\n".join([block[1], *_block_lines(path.parent, block[2], *block[3].split()), "", block[4]])

    page = BLOCK.sub(filled, page)
    replace_file(path, lambda file: file.write(page.encode()))


def _block_lines(folder, file, *form):
    record = read_record(folder / file)
    if not form:
        return page_of(record)
    if form == ("speeds",):
        return [*machine_lines(record), "", *speed_lines(record)]
    if len(form) != 2 or form[0] not in CURVES:
        raise DataError(f"benchmark:begin {' '.join([file, *form])}: expected {FORMS}")
    along, picture = form
    draw_curves(record, along, folder / picture)
    pictured = f"![{CURVES[along].title}]({picture})"
    return [*machine_lines(record), "", pictured, "", *curve_lines(record, along)]


def page_of(record):
    """Markdown lines: the machine, and a table for whatever was measured."""
    lines = machine_lines(record)
    sections = [make(record[name]["found"]) for name, make in SECTIONS.items() if record[name]]
    for found in [tables(record), *sections]:
        lines += ["", *found] if found else []
    return lines


def machine_lines(record):
    """Markdown: what was measured on, with the limits."""
    machine, settings = record["machine"], record["settings"]
    versions = ", ".join(f"{key} {machine[key]}" for key in list(machine)[list(machine).index("system") + 1 :])
    sets = ", ".join(machine["instruction_sets"])
    lines = [
        f"Processor: {machine['processor']} ({sets}), {machine['cores']} cores used, {machine['memory_gb']} GB; "
        f"{machine['system']}; {versions}; native operators {machine['native_operators']}. "
        f"{settings['repeats']} turns each."
    ]
    limits = limits_of(record)
    for cores in sorted({cores for _, cores in limits}):
        reached = {what: rate / 1e9 for (what, number), rate in limits.items() if number == cores}
        copied = reached.pop("copy", None)
        told = [f"products of {MATRIX} x {MATRIX} {rate:.0f} GFLOP/s in {what}" for what, rate in reached.items()]
        told += [f"copies {copied:.1f} GB/s, read and written"] if copied else []
        lines.append(f"With {cores} thread{'s' * (cores > 1)}: {'; '.join(told)}.")
    return lines


def limits_of(record):
    """{(precision, threads): FLOP/s, ("copy", threads): bytes/s}: the fastest turn of any contender."""
    limits = {}
    for measurement in record["measurements"]:
        case = Case(**measurement["case"])
        work = {"matmul": 2 * MATRIX**3, "copy": 2 * COPIED}.get(case.mode)
        fastest = min((min(r["seconds"]) for r in measurement["results"].values() if r.get("seconds")), default=None)
        if work and fastest:
            limits["copy" if case.mode == "copy" else case.precision, case.threads] = work / fastest
    return limits


def tables(record):
    """Markdown lines: a table for each case with a model."""
    limits, lines = limits_of(record), []
    for measurement in record["measurements"]:
        case = Case(**measurement["case"])
        if case.model:
            lines += [f"**{case}**", "", *_table(case, measurement, limits), ""]
    return lines[:-1]


def _table(case, measurement, limits):
    head = [f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS)]
    results = measurement["results"]
    first, work = _first_seconds(results), (2 * flops_of(case), measurement["bytes"])
    peaks = [limits.get((what, case.cores)) for what in (case.precision, "copy")]
    able = {name: result for name, result in results.items() if "error" not in result}
    rows = [_row(name, result, first, case, list(zip(work, peaks))) for name, result in able.items()]
    refused = [f"`{name}`, {_reason(name, result['error'])}" for name, result in results.items() if "error" in result]
    return [*head, *rows, *([f"\nNot measured: {'; '.join(refused)}."] if refused else [])]


def _reason(name, error):
    return re.sub(rf"^(\w+Error: )?({name}: )?", "", error).rstrip(".")


def _first_seconds(results):
    return next((result["seconds"] for result in results.values() if result.get("seconds")), None)


def _row(name, result, first, case, limited):
    """`limited`: (work of a process's step, the machine's rate or None) for products and for copies."""
    median, low, high = ratios(result["seconds"], first)
    seconds = statistics.median(result["seconds"])
    cells = [
        f"`{name}`",
        f"{case.processes * case.batch_size / seconds:.1f}",
        f"**{median:.2f} x**",
        f"{low:.2f} to {high:.2f}",
        *(_share(case.processes * work / seconds, rate) for work, rate in limited),
        f"{result['build_seconds'] + result['first_step_seconds']:.1f}",
        f"{result['peak_memory'] / 1e9:.2f}" if result["peak_memory"] else "?",
        f"{result['difference']:.0e}",
    ]
    return f"| {' | '.join(cells)} |"


def _share(rate, limit):
    """Of the machine's limit; "?" where it was not measured, or while somebody else used the machine."""
    return f"{rate / limit:.0%}" if limit and rate < 1.1 * limit else "?"


def speed_lines(record):
    """Markdown: contenders against cases, how many times as fast as the case's first; a table for each precision."""
    lines, cases = [], [(Case(**found["case"]), found["results"]) for found in record["measurements"]]
    for precision in dict.fromkeys(case.precision for case, _ in cases if case.model):
        lines += [*_speeds([pair for pair in cases if pair[0].model and pair[0].precision == precision]), ""]
    return lines[:-1]


def _speeds(cases):
    sizes = [(f"{case.image_size} px", f"batch {case.batch_size}", case.crew) for case, _ in cases]
    titles = short_names((case.model, case.mode, *size) for (case, _), size in zip(cases, sizes))
    lines = [f"| {cases[0][0].precision} | {' | '.join(titles)} |", "|" + " --- |" * (len(cases) + 1)]
    for name in dict.fromkeys(name for _, results in cases for name in results):
        cells = [_speed(case, results, name) for case, results in cases]
        lines += [f"| `{name}` | {' | '.join(cells)} |"] if any(cells) else []
    return lines


def _speed(case, results, name):
    """ "" for who has no time."""
    seconds, first = results.get(name, {}).get("seconds"), _first_seconds(results)
    if not seconds:
        return ""
    if seconds is first:
        return f"{case.processes * case.batch_size / statistics.median(seconds):.1f} images/s"
    median, low, high = ratios(seconds, first)
    return f"{median:.2f} ({low:.2f} to {high:.2f})"
