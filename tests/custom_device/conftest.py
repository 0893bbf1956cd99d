"""The test device, built once, and scenarios on it in processes of their own."""

import json
import os
from pathlib import Path

import plugin
import pytest


@pytest.fixture(scope="session")
def build_device(tmp_path_factory):
    """Build the device under a name: the folder it is in."""
    if plugin.compiler() is None:
        pytest.skip("no C++ compiler (g++, or what CXX names) to build the test device with")
    folder = os.environ.get("TEST_DEVICE_BUILT")
    built = {plugin.DEVICE: Path(folder)} if folder else {}

    def build(device_type):
        if device_type not in built:
            built[device_type] = plugin.build(tmp_path_factory.mktemp("device") / device_type, device_type)
        return built[device_type]

    return build


@pytest.fixture(scope="session")
def device(build_device):
    """The folder of the device."""
    return build_device(plugin.DEVICE)


@pytest.fixture(scope="session")
def scenario():
    """Run a function of scenarios.py in a process that sees the device in `folder`: what the function returns."""

    def run(folder, name, *arguments, **variables):
        process = plugin.start(folder, Path(__file__).parent / "scenarios.py", name, *arguments, variables=variables)
        output, errors = process.communicate(timeout=200)
        assert process.returncode == 0, output + errors
        return json.loads(output.splitlines()[-1])

    return run
