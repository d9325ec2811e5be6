"""A process's answers about its services, over a real socket, with a scripted list of services."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.cluster import connection
from serving.cluster.connection import Cluster
from serving.deploy import ownership, service, services, terms_store
from serving.deploy.services import ServiceSummary
from workbench.endpoints import announce

CLUSTER = Cluster("192.0.2.1:6379")


def summary(name: str, owner: str) -> ServiceSummary:
    return ServiceSummary(name, "tiny", "running", 1, owner, 60.0, 5.0, None, None, 0.5)


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    mine = ownership.current_owner()
    rows = [summary("llm", mine), summary("theirs", "somebody@elsewhere")]
    monkeypatch.setattr(connection, "current", lambda: CLUSTER)
    monkeypatch.setattr(services, "list_services", lambda: rows)
    monkeypatch.setattr(service, "remove", names.append)
    monkeypatch.setattr(terms_store, "forget", lambda name: None)
    return names


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    server = announce.start_answering(tmp_path / "1.sock")
    yield tmp_path / "1.sock"
    server.shutdown()
    server.server_close()


def ask(path: Path, line: bytes) -> Any:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(line + b"\n")
        return json.loads(client.makefile().readline())


@pytest.mark.usefixtures("stopped")
def test_only_services_of_this_user_are_listed(path: Path) -> None:
    answer = ask(path, b'{"command": "list"}')
    assert answer["cluster"] == CLUSTER.address
    (only,) = answer["services"]
    assert (only["name"], only["replicas"], only["dollars_per_hour"]) == ("llm", 1, 0.5)


def test_only_services_of_this_user_can_be_stopped(path: Path, stopped: list[str]) -> None:
    assert ask(path, b'{"command": "stop", "name": "llm"}') == {}
    answer = ask(path, b'{"command": "stop", "name": "theirs"}')
    assert answer["error"].startswith("EndpointGoneError: theirs: ")
    assert stopped == ["llm"]


@pytest.mark.usefixtures("stopped")
@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"command": "run"}', "command must be list or stop, got 'run'"),
        (b"{}", "KeyError"),
        (b"no json", "JSONDecodeError"),
        (b"\xff", "UnicodeDecodeError"),
    ],
)
def test_another_question_gets_an_error(path: Path, line: bytes, error: str) -> None:
    assert ask(path, line)["error"].startswith(error)


@pytest.mark.usefixtures("stopped")
def test_a_client_that_does_not_wait_does_no_harm(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b'{"command": "list"}\n')
    assert ask(path, b'{"command": "list"}')["services"]


def test_without_a_cluster_there_is_no_service(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "current", lambda: None)
    assert ask(path, b'{"command": "list"}') == {"cluster": None, "services": []}


def test_no_other_user_can_open_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(announce, "_started", False)
    announce.announce()
    announce.announce()
    (path,) = announce.socket_folder().iterdir()
    assert path.name == f"{os.getpid()}.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.parent.is_relative_to(tmp_path)
