"""Ending processes, and whether they have ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def process_group(command: list[Any], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a group of its own, and kill the whole group at the end.

    A program that calls `end_group_with_parent` also ends its group if this process is killed.
    """
    options |= {"stdin": subprocess.PIPE, "start_new_session": True}
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def end_group_with_parent() -> None:
    """Kill the group of this process as soon as the other end of its standard input closes."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.killpg(0, signal.SIGKILL)

    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    threading.Thread(target=wait, daemon=True).start()


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


def assert_gone(pids: list[int], port: int, within_s: float = 25) -> None:
    """Fail unless these processes end within the time and nothing listens on the port.

    A proxy that does not notice the end of its service ends only after 30 s.
    """
    deadline = time.monotonic() + within_s
    while remaining := [pid for pid in pids if (Path("/proc") / str(pid)).exists()]:
        assert time.monotonic() < deadline, f"still running: {names(remaining)}"
        time.sleep(0.1)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, f"port {port} still listens"
