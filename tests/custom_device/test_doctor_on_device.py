"""tools/doctor.py on a device of a plugin."""

import json

import plugin
import pytest
from plugin import DEVICE, ROOT
from tiny_run import tiny_file

DOCTOR = ROOT / "tools" / "doctor.py"


@pytest.fixture
def run(device):
    """(exit code, the JSON document) of `tools/doctor.py --json <arguments>` in a process that sees the device."""

    def call(*arguments, **variables):
        process = plugin.start(device, DOCTOR, "--json", *arguments, variables={"GLOG_minloglevel": 0, **variables})
        output, errors = process.communicate(timeout=200)
        assert output, errors
        return process.returncode, json.loads(output)["sections"]

    return call


def findings(section):
    return {found["name"]: found for found in section["findings"]}


@pytest.mark.slow
def test_the_device_computes_what_the_cpu_does_and_lacks_kernels_that_the_cpu_has(run, tmp_path):
    code, sections = run("-c", tiny_file(tmp_path), "--device", f"{DEVICE}:1", "--compare", "cpu")
    assert code == 0
    found = findings(sections["device"])
    assert found["seen"]["value"] == f"cpu, {DEVICE}:0, {DEVICE}:1"
    assert (found["device"]["value"], found["device"]["verdict"]) == (f"{DEVICE}:1", "ok")
    assert found["plugins"]["value"].endswith(": libdevice.so") and found["plugins"]["verdict"] == "ok"
    found = findings(sections["operators"])
    assert (
        found["falls back to CPU"]["verdict"] == "warning" and "adamw (float32)" in found["falls back to CPU"]["advice"]
    )
    assert (found["kernels"]["value"], found["missing"]["value"]) == (f"those of {DEVICE}:1", "0")
    comparison = sections["comparison"]
    assert {finding["verdict"] for finding in comparison["findings"]} == {"ok"}
    assert max(row["relative"] for row in comparison["rows"]) < 1e-5 and len(comparison["rows"]) > 50


@pytest.mark.slow
def test_a_device_that_is_not_there_is_an_error_that_names_those_that_are(run):
    code, sections = run("--device", f"{DEVICE}:5")
    assert code == 1
    assert findings(sections["device"])["device"]["advice"] == (
        f"there is no '{DEVICE}:5', only {DEVICE}:0, {DEVICE}:1"
    )
