"""The routes of the server extension, on a real Jupyter server without a browser.

Processes with services are scripted servers on real sockets.
"""

from __future__ import annotations

import json
import os
import re
import socketserver
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT
from support.processes import end_process
from support.services import ServicesProcess

from serving.cluster.ports import free_port
from workbench.jupyter.notebooks import find_notebooks

TOKEN = "the-token-of-the-server"


class Server:
    """A Jupyter server with the extension."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root"]
        command += [f"--port={self.port}", "--ServerApp.port_retries=0"]
        command += [f"--ServerApp.root_dir={folder}", "--ServerApp.base_url=/hub/"]
        command += ["--ServerApp.jpserver_extensions", "workbench.jupyter=True"]
        env = {**os.environ, "JUPYTER_TOKEN": TOKEN, "RAY_TMPDIR": str(folder.parent)}
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, env=env, stdout=out, stderr=out)

    def call(self, path: str, method: str = "GET", **headers: str) -> tuple[int, Any]:
        """Return the status and the body of an answer."""
        url = f"http://127.0.0.1:{self.port}/hub/workbench/{path}"
        request = urllib.request.Request(url, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                body = response.read()
                return response.status, json.loads(body) if body else None
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's folder, in a short path for sockets."""
    return tmp_path_factory.mktemp("j") / "root"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    folder.mkdir()
    started = Server(folder, folder.parent / "log")
    deadline = time.monotonic() + 120
    while True:
        try:
            started.call("notebooks")
            break
        except OSError:
            assert time.monotonic() < deadline, (folder.parent / "log").read_text()
            time.sleep(0.2)
    yield started
    end_process(started.process)


@pytest.fixture
def sockets(folder: Path) -> Path:
    return folder.parent / f"llm-{os.getuid()}" / "services"


AUTHORIZED = {"Authorization": f"token {TOKEN}"}


@pytest.mark.parametrize(
    ("path", "method"),
    [("services", "GET"), ("notebooks", "GET"), ("services/1/llm", "DELETE")],
)
def test_nothing_is_answered_without_authentication(server: Server, path: str, method: str) -> None:
    assert server.call(path, method)[0] == 403
    assert server.call(path, method, Authorization="token wrong")[0] == 403


def test_a_page_of_another_origin_cannot_stop_a_service(server: Server, sockets: Path) -> None:
    """A cookie authenticates a browser's requests; a change also needs the XSRF token."""
    base = f"http://127.0.0.1:{server.port}/hub/"
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    opener.open(f"{base}login?token={TOKEN}", timeout=60).read()
    with ServicesProcess(sockets / "8.sock", ["llm"]) as process:
        opener.open(f"{base}workbench/services", timeout=60).read()  # the cookie is accepted
        request = urllib.request.Request(f"{base}workbench/services/8/llm", method="DELETE")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            opener.open(request, timeout=60)
        assert process.services == ["llm"]


def test_the_services_of_all_processes_are_listed_once_and_stopped_where_they_are(
    server: Server, sockets: Path
) -> None:
    assert server.call("services", **AUTHORIZED) == (200, {"services": []})
    with (
        ServicesProcess(sockets / "11.sock", ["one"], "192.0.2.1:1") as first,
        ServicesProcess(sockets / "12.sock", ["two", "shared"], "192.0.2.2:2") as second,
        ServicesProcess(sockets / "13.sock", ["shared"], "192.0.2.2:2"),
    ):
        status, body = server.call("services", **AUTHORIZED)
        assert status == 200
        found = [(s["process"], s["name"]) for s in body["services"]]
        assert found == [("11", "one"), ("12", "two"), ("12", "shared")]
        assert server.call("services/12/two", "DELETE", **AUTHORIZED) == (204, None)
        assert (first.services, second.services) == (["one"], ["shared"])
        status, text = server.call("services/11/two", "DELETE", **AUTHORIZED)
        assert status == 502
        assert "no service two" in text


def test_a_process_that_was_killed_is_forgotten(server: Server, sockets: Path) -> None:
    with socketserver.UnixStreamServer(str(sockets / "21.sock"), socketserver.BaseRequestHandler):
        pass  # closed, and its socket remains
    assert (sockets / "21.sock").exists()
    assert server.call("services", **AUTHORIZED) == (200, {"services": []})
    assert not (sockets / "21.sock").exists()
    status, text = server.call("services/21/llm", "DELETE", **AUTHORIZED)
    assert status == 404
    assert "has ended" in text


def test_no_other_path_reaches_a_socket(server: Server) -> None:
    for path in ("services/..%2F1/llm", "services/1/..", "services/x/llm", "services/1/A"):
        assert server.call(path, "DELETE", **AUTHORIZED)[0] == 404


def test_the_launcher_lists_the_notebooks_of_the_workbench(server: Server, folder: Path) -> None:
    (folder / "notebooks").mkdir()
    for name in ("00_first_endpoint", "02_watch_autoscaling"):
        source = (ROOT / "notebooks" / f"{name}.ipynb").read_text()
        (folder / "notebooks" / f"{name}.ipynb").write_text(source)
    (folder / "notebooks" / "03_broken.ipynb").write_text("{")
    (folder / "01_other.ipynb").write_text('{"cells": []}')
    status, body = server.call("notebooks", **AUTHORIZED)
    assert status == 200
    assert [entry["path"] for entry in body["notebooks"]] == [
        "notebooks/00_first_endpoint.ipynb",
        "notebooks/02_watch_autoscaling.ipynb",
    ]
    assert body["notebooks"][0]["title"] == "00 · First endpoint"


def test_every_notebook_of_the_repository_has_a_card() -> None:
    files = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    found = find_notebooks(ROOT)
    assert [Path(entry["path"]).name for entry in found] == files
    assert all(re.fullmatch(r"\d\d · \S.*", entry["title"]) for entry in found)
