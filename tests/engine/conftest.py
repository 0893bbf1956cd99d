"""What the tests of whole runs share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from run_server import RunServer


@pytest.fixture(scope="session")
def server():
    """A RunServer."""
    with RunServer() as server:
        yield server
