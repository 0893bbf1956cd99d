"""The operators that a config runs, as findings: which ones a device has kernels for."""

from collections import defaultdict

from passl_xcit.engine.preflight import FALLS_BACK, MISSING, NATIVE, PARTS, kernels_for, preflight
from passl_xcit.engine.report import Finding, Section, Table
from passl_xcit.utils.device import is_custom
from passl_xcit.utils.errors import ConfigError, UserError

NAMED = 5
KINDS = (
    (NATIVE, "ok", ""),
    (FALLS_BACK, "warning", "run on the CPU, with copies there and back in each step"),
    (MISSING, "error", "no kernel of this type, neither there nor on the CPU: another AMP level or type may have it"),
)


def check_operators(cfg, device):
    """Section of the operators that `cfg` runs, and what `device` has for them; see `preflight`.

    Raises:
        ConfigError: for a config that cannot be run.
    """
    try:
        kernels_for(device)
    except ConfigError:
        return Section("operators", [Finding(device, "not looked up", "warning", f"{device} cannot be used")])
    try:
        rows = preflight(cfg, device)
    except ConfigError:
        raise
    except UserError as error:
        return Section("operators", [Finding(device, "not looked up", "warning", str(error))])
    by_table = device.startswith("npu") and not is_custom(device)
    kernels = Finding("kernels", "Ascend's, by the table of this project" if by_table else f"those of {device}")
    findings = [kernels, *(_those(rows, *kind) for kind in KINDS)]
    table = None if device == "cpu" else _operator_table(rows)  # what ran there has a kernel there
    return Section("operators", findings, table, {"rows": [row._asdict() for row in rows]})


def _those(rows, kind, verdict, advice):
    """The finding on the rows of one kind."""
    names = [f"{row.operator} ({row.dtype})" for row in rows if row.verdict == kind]
    if not names or verdict == "ok":
        return Finding(kind, str(len(names)))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return Finding(kind, str(len(names)), verdict, f"{', '.join(names[:NAMED])}{more}: {advice}")


def _operator_table(rows):
    """A line for each operator and verdict, in their order; which type is in which part, is in the JSON."""
    types, parts = defaultdict(set), defaultdict(set)
    for row in rows:
        types[row.operator, row.verdict].add(row.dtype)
        parts[row.operator, row.verdict].update(row.parts)
    lines = [
        [operator, ", ".join(sorted(found)), ", ".join(sorted(parts[operator, verdict], key=PARTS.index)), verdict]
        for (operator, verdict), found in types.items()
    ]
    return Table(("operator", "types", "part", "verdict"), lines)
