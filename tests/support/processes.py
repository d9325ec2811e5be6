"""Ending processes, and whether they have ended."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path


def end_process(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to end, and kill it if it has not ended after a minute."""
    process.terminate()
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def names(pids: list[int]) -> dict[int, str]:
    """The commands of the processes that still run, by process id."""
    commands = {}
    for pid in pids:
        try:
            commands[pid] = (Path("/proc") / str(pid) / "comm").read_text().strip()
        except OSError:
            continue
    return commands


def assert_gone(pids: list[int], port: int, within_s: float = 15) -> None:
    """Fail unless these processes end within the time and nothing listens on the port."""
    deadline = time.monotonic() + within_s
    while remaining := [pid for pid in pids if (Path("/proc") / str(pid)).exists()]:
        assert time.monotonic() < deadline, f"still running: {names(remaining)}"
        time.sleep(0.1)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, f"port {port} still listens"
