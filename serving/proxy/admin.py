"""Asks a process of HAProxy for its process id, on its admin socket."""

from __future__ import annotations

import re
import socket

TIMEOUT_S = 2.0


def owner(path: str) -> tuple[int, str] | None:
    """Return the id of the process that answers on the socket at ``path``, and the path."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(path)
            connection.sendall(b"show info\n")
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
    except OSError:
        return None
    match = re.search(rb"^Pid: (\d+)$", answer, re.MULTILINE)
    return (int(match.group(1)), path) if match else None
