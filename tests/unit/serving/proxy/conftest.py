"""A proxy and a backend per test."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from support.haproxy import Backend, Proxy, Server

from serving.proxy.wrapper import PER_ADDRESS_VARIABLE


@pytest.fixture
def backend() -> Iterator[int]:
    with Server(("127.0.0.1", 0), Backend) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    # The path of a Unix socket has at most 107 bytes.
    proxy = Proxy(tmp_path_factory.mktemp("h"))
    proxy.variables[PER_ADDRESS_VARIABLE] = "2048"
    yield proxy
    proxy.close()
