"""A real HAProxy, started by the wrapper as Ray Serve starts it, in front of a scripted backend."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from support.haproxy_config import render

from serving.cluster.ports import Ports
from serving.proxy import admin
from serving.proxy.install import install


class Backend(BaseHTTPRequestHandler):
    """Answers `/` at once, `/slow/S` after S seconds, and `/stream/S` with one line every 0.1 s."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # Headers and body leave in one packet; otherwise each answer waits for an ACK.

    def do_GET(self) -> None:
        kind, _, seconds = self.path.strip("/").partition("/")
        if kind == "slow":
            time.sleep(float(seconds))
        if kind == "stream":
            self.stream(float(seconds))
            return
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def stream(self, seconds: float) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for index in range(round(seconds * 10)):
            line = f"{index}\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()
            time.sleep(0.1)
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """A client that leaves is no error."""


class Proxy:
    """One HAProxy, managed as Ray Serve manages it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._block = Ports()
        self.port = self._block.endpoint
        self.ports = (self._block.head, self._block.client)
        self.program = install(folder / "program")
        self.variables: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.old: list[subprocess.Popen[bytes]] = []
        self.manager: subprocess.Popen[bytes] | None = None

    @property
    def admin_socket(self) -> str:
        return str(self.folder / "admin.sock")

    @property
    def log(self) -> str:
        return (self.folder / "stderr.log").read_text()

    def configure(self, servers: dict[str, int] | None = None, **fields: Any) -> Path:
        return render(self.folder, self.port, servers, ports=self.ports, **fields)

    def start(self, *options: str, program: Path | None = None) -> int:
        """Start a process and wait until it owns the admin socket; return its id."""
        command: list[Any] = [program or self.program, "-db", "-f", self.folder / "haproxy.cfg"]
        with (self.folder / "stderr.log").open("ab") as log:
            process = subprocess.Popen(
                [*command, "-dR", *options], env=os.environ | self.variables, stderr=log
            )
        if self.process is not None:
            self.old.append(self.process)
        self.process = process
        while (admin.owner(self.admin_socket) or (0,))[0] != process.pid:
            assert process.poll() is None, self.log
            time.sleep(0.02)
        return process.pid

    def reload(self) -> int:
        assert self.process is not None
        return self.start("-sf", str(self.process.pid), "-x", self.admin_socket)

    def connections(self) -> int:
        """Return the open connections to the endpoint, by HAProxy's own statistics."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.admin_socket)
            connection.sendall(b"show stat http_frontend 1 -1\n")
            lines = read_all(connection).decode().splitlines()
        names = lines[0].removeprefix("# ").split(",")
        return int(lines[1].split(",")[names.index("scur")])

    def admitted(self) -> int:
        """Return the open connections that HAProxy's rules have let pass.

        HAProxy counts a connection before it applies its rules.
        """
        table = admin.ask(self.admin_socket, "show table http_frontend")
        return sum(map(int, re.findall(r"conn_cur=(\d+)", table)))

    def connect(self, source: str = "127.0.0.1", host: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection((host, self.port), 30, source_address=(source, 0))

    def request(
        self, path: str = "/", connection: socket.socket | None = None, method: str = "GET"
    ) -> bytes:
        """Return the whole response to one request; without a connection, over a new one."""
        last = connection is None
        used = connection or self.connect()
        head = f"{method} {path} HTTP/1.1\r\nHost: here\r\n"
        head += "Content-Length: 0\r\n" if method == "POST" else ""
        used.sendall((head + ("Connection: close\r\n" if last else "") + "\r\n").encode())
        if last:
            with used:
                return read_all(used)
        answer = b""
        while not answer.endswith(b"\r\n\r\nok"):
            chunk = used.recv(65536)
            if not chunk:
                raise ConnectionAbortedError(f"closed after {answer!r}")
            answer += chunk
        return answer

    def close(self) -> None:
        # Without this file, the guard starts no process in place of one that ends.
        (self.folder / "haproxy.cfg.standby").unlink(missing_ok=True)
        for process in [self.process, *self.old, self.manager]:
            if process is not None:
                process.kill()
                process.wait()
        standby = admin.owner(str(self.folder / "spare.sock"))
        if standby is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(standby[0], signal.SIGTERM)
        self._block.close()


def read_all(connection: socket.socket) -> bytes:
    chunks = []
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            chunks.append(chunk)
    return b"".join(chunks)


def wait_for(condition: Callable[[], bool], seconds: float) -> float:
    """Return the seconds until the condition holds."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "the condition does not hold in time"
        time.sleep(0.02)
    return time.monotonic() - start
