"""Tell JupyterLab which services this process's user has on its cluster, and stop them on request.

Only a process that is connected to a cluster can ask it. So each process that deploys a service
answers questions on a socket in the user's folder, which no other user can open. A question and an
answer are one line of JSON each.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socketserver
import threading
from pathlib import Path
from typing import Any

from serving.cluster import connection
from serving.cluster.user_folder import user_folder
from serving.errors import WorkbenchError

MAX_LINE_BYTES = 65_536
MAX_FOLDER_BYTES = 107 - len("/services/4194304.sock")
"""Bytes of the path of the user's folder, so that a socket's path is one that Linux accepts."""
_lock = threading.Lock()
_started = False


def socket_folder() -> Path:
    """Return the folder of the sockets, each named after the id of its process; create it.

    Raises:
        ClusterError: There is no place for it.
        OSError: It cannot be created.
    """
    folder = user_folder(MAX_FOLDER_BYTES) / "services"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def announce() -> None:
    """Answer questions from now on, in a thread. Without a place for the socket, do nothing."""
    global _started
    with _lock, contextlib.suppress(WorkbenchError, OSError):
        if not _started:
            start_answering(socket_folder() / f"{os.getpid()}.sock")
            _started = True


def start_answering(path: Path) -> socketserver.BaseServer:
    """Answer on a socket at this path until the process ends, in a thread."""
    path.unlink(missing_ok=True)  # left over by an earlier process with this id
    server = _Server(str(path), _Handler)
    path.chmod(0o600)
    atexit.register(path.unlink, missing_ok=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class _Handler(socketserver.StreamRequestHandler):
    timeout = 10.0

    def handle(self) -> None:
        line = self.rfile.readline(MAX_LINE_BYTES)
        with contextlib.suppress(OSError):  # the client did not wait
            self.wfile.write(json.dumps(answer(line)).encode() + b"\n")


def answer(line: bytes) -> dict[str, Any]:
    """Return the answer to a question: ``services``, or ``error`` with a message."""
    try:
        question = json.loads(line)
        if question["command"] == "list":
            return own_services()
        if question["command"] == "stop":
            stop(str(question["name"]))
            return {}
        return {"error": f"command must be list or stop, got {question['command']!r}"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def own_services() -> dict[str, Any]:
    """Return the services of this process's user on its cluster."""
    from serving.deploy.ownership import current_owner
    from serving.deploy.services import list_services

    cluster = connection.current()
    rows = [] if cluster is None else list_services()
    mine = [row._asdict() for row in rows if row.owner == current_owner()]
    return {"cluster": cluster.address if cluster else None, "services": mine}


def stop(name: str) -> None:
    """Stop a service of this process's user. The cluster runs on until its notebook ends.

    Raises:
        ClusterError: The service does not stop.
        EndpointGoneError: The user has no such service here.
    """
    from serving.deploy import service, terms_store
    from serving.errors import EndpointGoneError

    if name not in [row["name"] for row in own_services()["services"]]:
        raise EndpointGoneError(f"{name}: the cluster runs no such service of this user")
    service.remove(name)
    terms_store.forget(name)
