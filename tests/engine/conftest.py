"""What the tests of whole runs share."""

import pytest
from run_server import RunServer


@pytest.fixture(scope="session")
def server():
    """A RunServer."""
    with RunServer() as server:
        yield server
