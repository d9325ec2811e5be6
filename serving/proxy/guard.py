"""Guards one process of HAProxy: serves in its place if it dies, and ends it if it is orphaned.

Ray Serve notices a dead HAProxy after three missed checks and starts another manager, which takes
about ten seconds. Meanwhile the guard runs HAProxy with the same routes. Its admin socket has
another path, so that Ray Serve still notices. The new manager's HAProxy takes over the listening
sockets (``wrapper``).
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

from serving.proxy import admin, configuration, wrapper

POLL_S = 0.2
ORPHAN_S = 30.0
"""Seconds within which a process whose manager has ended must have a successor."""
ATTEMPTS = 5


class Process:
    """Another process, of which this one need not be the parent."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._descriptor: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            self._descriptor = None

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._descriptor is not None and not _ended(self._descriptor, 0)

    def wait(self, timeout_s: float) -> bool:
        """Return whether the process ends within the time."""
        return self._descriptor is None or _ended(self._descriptor, timeout_s)

    def terminate(self) -> None:
        """Ask the process to end."""
        if self._descriptor is not None and self.alive:
            signal.pidfd_send_signal(self._descriptor, signal.SIGTERM)


def _ended(descriptor: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def main(arguments: list[str]) -> None:
    """Run ``guard HAPROXY PID MANAGER_PID STANDBY_CONFIGURATION ADMIN_SOCKET``."""
    haproxy, pid, manager_pid, standby, socket = arguments
    proxy, manager = Process(int(pid)), Process(int(manager_pid))
    while proxy.alive and manager.alive:
        _wait_for_any(proxy, manager)
    if proxy.alive:
        end_orphan(proxy, socket, socket)
        return
    if not _has_routes(standby):
        return
    for _ in range(ATTEMPTS):
        if admin.owner(socket) is not None or not manager.alive:
            return
        serve_until_replaced(start(haproxy, standby), manager, socket)
        time.sleep(POLL_S)


def _wait_for_any(*processes: Process) -> None:
    poll = select.poll()
    for process in processes:
        if process._descriptor is not None:
            poll.register(process._descriptor, select.POLLIN)
    poll.poll()


def _has_routes(standby: str) -> bool:
    try:
        with open(standby) as file:
            return configuration.knows_routes(file.read())
    except (OSError, ValueError):
        return False


def start(haproxy: str, standby: str) -> Process:
    """Start HAProxy with the standby configuration."""
    command = [haproxy, "-db", "-dR", "-f", standby]
    return Process(os.posix_spawn(haproxy, command, os.environ))


def serve_until_replaced(standby: Process, manager: Process, socket: str) -> None:
    """Return when the standby process has ended, or has a successor that lets it drain."""
    while not standby.wait(POLL_S):
        if not manager.alive:
            end_orphan(standby, socket, wrapper.standby_socket(socket))
            break
    os.waitpid(standby.pid, os.WNOHANG)


def end_orphan(proxy: Process, socket: str, own_socket: str) -> None:
    """End a process of HAProxy without a manager, unless a successor lets it drain.

    Without a server that it can reach, Ray Serve has shut down, and it ends at once.
    """
    deadline = time.monotonic() + ORPHAN_S
    while time.monotonic() < deadline and not proxy.wait(POLL_S):
        owner = admin.owner(socket)
        if owner is not None and owner[0] != proxy.pid:
            return
        if not admin.has_servers(own_socket):
            break
    proxy.terminate()


if __name__ == "__main__":
    main(sys.argv[1:])
