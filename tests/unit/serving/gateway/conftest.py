"""Gates on real sockets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.gate_server import ServedGate, Server


@pytest.fixture
def served(server: Server) -> Iterator[ServedGate]:
    """A gate in front of an application that answers at once."""
    with server.serving() as gate:
        yield gate


@pytest.fixture
def held(server: Server) -> Iterator[ServedGate]:
    """A gate in front of an application that holds each request until the test lets it answer."""
    with server.serving(held=True) as gate:
        yield gate
