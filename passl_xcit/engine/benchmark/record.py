"""A benchmark as a file, written anew after each case, so that one that was stopped goes on where it was."""

import json
from datetime import datetime, timezone
from pathlib import Path

from passl_xcit.engine.benchmark.cases import Case, bytes_of
from passl_xcit.engine.benchmark.machine import describe_machine
from passl_xcit.engine.benchmark.measure import measure
from passl_xcit.utils.errors import ConfigError, DataError
from passl_xcit.utils.new_file import make_parent, replace_file

VERSION = 3
NOTHING = {"measurements": [], "pipeline": None, "startup": None, "operators": None}


class Record:
    """The file of a benchmark: {"machine", "settings", "measurements", "pipeline", "startup", "operators"}.

    "measurements" is a list of {"case", "date", "bytes", "results"} with `cases.bytes_of` of the case, where it has a
    model, and the results of `measure.measure`; "pipeline" is what
    `pipeline.measure_pipeline` returns, "startup" what `startup.measure_startup` does and "operators" what
    `operators.measure_operators` does; the last three may be None.
    What is there already is not measured again. What workers print goes to a file beside it, NAME.log.

    Args:
        path: a file that is there is gone on with.

    Raises:
        ConfigError: the file was measured on another machine or with other settings.
        DataError: it is no file of a benchmark.
        CheckpointError: it cannot be written.
    """

    def __init__(self, path, contenders, repeats, told=lambda text: None):
        self.path, self.contenders, self.repeats, self.told = Path(path), contenders, repeats, told
        settings = {"contenders": [contender.name for contender in contenders], "repeats": repeats}
        self.data = {"version": VERSION, "machine": describe_machine(), "settings": settings}
        self.data.update(_begun(self.path, self.data) if self.path.exists() else NOTHING)
        make_parent(self.path)

    def measure_cases(self, cases):
        """Measure those that are not there yet, and write each at once."""
        done = [Case(**measurement["case"]) for measurement in self.data["measurements"]]
        for case in [case for case in cases if case not in done]:
            with self.path.with_suffix(".log").open("a", encoding="utf-8") as log:
                results = measure(case, self.contenders, self.repeats, log, self.told)
            moved = {"bytes": bytes_of(case)} if case.model else {}
            found = {"case": case._asdict(), "date": _now(), **moved, "results": results}
            self._write(measurements=[*self.data["measurements"], found])

    def measure_section(self, name, of, measure_it):
        """Call `measure_it(repeats, told)` for the section `name`, such as "pipeline", if it is not there yet.

        Args:
            of: what is measured, as JSON has it.

        Raises:
            ConfigError: what is there is that of something else.
        """
        there = self.data[name]
        if there is None:
            self._write(**{name: {"date": _now(), "of": of, "found": measure_it(self.repeats, self.told)}})
        elif there["of"] != of:
            raise ConfigError(f"{self.path}: has {name} of {there['of']}, not of {of}; give another file")

    def _write(self, **parts):
        self.data = {**self.data, **parts}
        replace_file(self.path, lambda file: file.write(json.dumps(self.data, indent=1).encode()))


def _now():
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def read_record(path):
    """What a Record wrote.

    Raises:
        DataError: there is no such file, or it is none of a benchmark.
    """
    try:
        record = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}: is no JSON: {error}") from error
    parts = {"machine", "settings", *NOTHING}
    if not isinstance(record, dict) or record.get("version") != VERSION or not parts <= set(record):
        raise DataError(f"{path}: is no file of tools/benchmark.py, version {VERSION}")
    return record


def _begun(path, wanted):
    """What is measured in a file that was begun with the same settings on the same machine."""
    found = read_record(path)
    for part in ("machine", "settings"):
        other = [key for key, value in wanted[part].items() if found[part].get(key) != value]
        if other:
            raise ConfigError(
                f"{path}: was measured with {other[0]} {found[part].get(other[0])!r}, not {wanted[part][other[0]]!r}; "
                "give another file"
            )
    return {name: found[name] for name in NOTHING}
