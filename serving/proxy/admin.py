"""Asks a process of HAProxy about itself, on its admin socket."""

from __future__ import annotations

import re
import socket

TIMEOUT_S = 2.0


def ask(path: str, command: str) -> str:
    """Return the answer on the admin socket at ``path``; an empty text if nothing answers."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(path)
            connection.sendall(command.encode() + b"\n")
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
    except OSError:
        return ""
    return answer.decode()


def owner(path: str) -> tuple[int, str] | None:
    """Return the id of the process that answers on the socket at ``path``, and the path."""
    match = re.search(r"^Pid: (\d+)$", ask(path, "show info"), re.MULTILINE)
    return (int(match.group(1)), path) if match else None


def has_servers(path: str) -> bool:
    """Return whether the process that answers at ``path`` can reach a server."""
    return re.search(r",UP( \d+/\d+)?,", ask(path, "show stat -1 4 -1")) is not None
