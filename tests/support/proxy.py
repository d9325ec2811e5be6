"""A scripted HTTP proxy on a real socket, with its own log of the requests it received."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

PAGE = b"<html><body>The gateway did not respond.</body></html>"


@dataclass
class ScriptedProxy:
    """Forwards CONNECT and plain requests, or answers every request itself with `refuse`.

    `log` has the first line of each request, and `credentials` who sent it.
    """

    user: str | None = None
    refuse: int | None = None
    log: list[str] = field(default_factory=list)
    credentials: list[str | None] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        """The URL with the credentials that it requires."""
        return f"http://{self.user + '@' if self.user else ''}127.0.0.1:{self.port}"

    def serve(self, client: socket.socket) -> None:
        """Handle one connection."""
        with client, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := client.recv(65536)):
                    return
                head += data
            first, *lines = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
            method, target, _ = first.split(" ")
            self.log.append(f"{method} {target}")
            user = self._user(lines)
            self.credentials.append(user)
            if self.refuse is not None or user != self.user:
                client.sendall(self._refusal(self.refuse or 407))
                return
            parts = urlsplit(target if "://" in target else f"tunnel://{target}")
            with socket.create_connection((parts.hostname, parts.port), timeout=60) as server:
                if method == "CONNECT":
                    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    server.sendall(head.replace(target.encode(), parts.path.encode(), 1))
                back = threading.Thread(target=_copy, args=(server, client), daemon=True)
                back.start()
                _copy(client, server)
                back.join(10)

    def _user(self, lines: list[str]) -> str | None:
        for line in lines:
            name, _, value = line.partition(":")
            if name.lower() == "proxy-authorization":
                return base64.b64decode(value.strip().removeprefix("Basic ")).decode()
        return None

    def _refusal(self, status: int) -> bytes:
        lines = [
            f"HTTP/1.1 {status} Refused",
            "content-type: text/html",
            f"content-length: {len(PAGE)}",
            "connection: close",
        ]
        if status == 407:
            lines.append('proxy-authenticate: Basic realm="scripted"')
        return "\r\n".join([*lines, "", ""]).encode() + PAGE


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def scripted_proxy(
    *, user: str | None = None, refuse: int | None = None
) -> Iterator[ScriptedProxy]:
    """Run a proxy in threads."""
    proxy = ScriptedProxy(user=user, refuse=refuse)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy.port = listener.getsockname()[1]

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threading.Thread(target=proxy.serve, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield proxy
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
