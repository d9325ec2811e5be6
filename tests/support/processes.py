"""What is left of processes that should have ended."""

from __future__ import annotations

import socket
import time
from pathlib import Path


def names(pids: list[int]) -> dict[int, str]:
    found = {}
    for pid in pids:
        try:
            found[pid] = (Path("/proc") / str(pid) / "comm").read_text().strip()
        except OSError:
            continue
    return found


def assert_gone(pids: list[int], port: int, within_s: float = 15) -> None:
    deadline = time.monotonic() + within_s
    while left := [pid for pid in pids if (Path("/proc") / str(pid)).exists()]:
        assert time.monotonic() < deadline, f"still there: {names(left)}"
        time.sleep(0.1)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, f"port {port} still listens"
