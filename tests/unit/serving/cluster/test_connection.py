"""What connecting to a cluster will do."""

from __future__ import annotations

import socket

import pytest

from serving.cluster.connection import describe_connection
from serving.errors import PortTakenError
from serving.spec.service import ServiceSpec


def test_a_taken_port_is_rejected_before_a_local_cluster_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"port = {taken}"):
            describe_connection(ServiceSpec(port=taken), None)
    assert describe_connection(ServiceSpec(port=0), None) == "starting Ray"


def test_the_port_is_not_checked_here_for_another_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        spec = ServiceSpec(port=listener.getsockname()[1])
        assert describe_connection(spec, "a:1") == "connecting to the Ray cluster at a:1"
        monkeypatch.setenv("RAY_ADDRESS", "b:2")
        assert describe_connection(spec, None) == "connecting to the Ray cluster at b:2"
