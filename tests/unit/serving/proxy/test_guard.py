"""The guard with a real HAProxy that dies, whose manager dies, or that is shut down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.haproxy import Backend, Proxy, Server, wait_for

from serving.proxy import admin

MANAGER = """
import subprocess, sys, time
subprocess.Popen(sys.argv[1:])
time.sleep(1000)
"""


def start_under_manager(proxy: Proxy) -> int:
    """Start HAProxy as the child of another process; return HAProxy's process id."""
    command = [str(proxy.program), "-db", "-f", str(proxy.folder / "haproxy.cfg"), "-dR"]
    proxy.manager = subprocess.Popen([sys.executable, "-c", MANAGER, *command])
    wait_for(lambda: admin.owner(proxy.admin_socket) is not None, 60)
    owner = admin.owner(proxy.admin_socket)
    assert owner is not None
    return owner[0]


def standby(proxy: Proxy) -> int | None:
    owner = admin.owner(str(proxy.folder / "spare.sock"))
    return owner[0] if owner else None


def serves(proxy: Proxy) -> bool:
    try:
        return proxy.request().startswith(b"HTTP/1.1 200")
    except ConnectionError:
        return False


def running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_a_killed_proxy_is_replaced_at_once_and_the_new_manager_takes_over(
    proxy: Proxy, backend: int
) -> None:
    proxy.configure({"one": backend})
    os.kill(start_under_manager(proxy), signal.SIGKILL)
    assert wait_for(lambda: serves(proxy), 60) < 10
    # The admin socket does not answer, so Ray Serve starts another manager, which has no routes.
    assert admin.owner(proxy.admin_socket) is None
    replacement = standby(proxy)
    assert replacement is not None
    proxy.configure()
    failures: list[str] = []
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            if not serves(proxy):
                failures.append("failed")
            time.sleep(0.01)

    sender = threading.Thread(target=load)
    sender.start()
    time.sleep(0.5)
    proxy.start()
    wait_for(lambda: not running(replacement), 60)
    proxy.configure({"one": backend})
    proxy.reload()
    time.sleep(0.5)
    done.set()
    sender.join()
    assert failures == []


@pytest.mark.parametrize("proxy_first", [True, False])
@pytest.mark.slow
def test_nothing_is_left_when_ray_serve_shuts_down(proxy: Proxy, proxy_first: bool) -> None:
    with Server(("127.0.0.1", 0), Backend) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        proxy.configure({"one": server.server_address[1]})
        pid = start_under_manager(proxy)
        assert serves(proxy)
        if proxy_first:
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: standby(proxy) is not None, 60)
        assert proxy.manager is not None
        proxy.manager.kill()
        proxy.manager.wait()
        server.shutdown()
    wait_for(lambda: not running(pid) and standby(proxy) is None, 25)
    assert not serves(proxy)


def test_a_reload_starts_no_standby(proxy: Proxy, backend: int) -> None:
    proxy.configure({"one": backend})
    first = proxy.start()
    proxy.reload()
    wait_for(lambda: proxy.old[0].poll() is not None, 60)
    time.sleep(1)
    assert not running(first)
    assert standby(proxy) is None


def test_without_routes_nothing_replaces_a_dead_proxy(proxy: Proxy) -> None:
    proxy.configure()
    os.kill(start_under_manager(proxy), signal.SIGKILL)
    time.sleep(2)
    assert standby(proxy) is None


def test_an_orphan_serves_until_a_new_manager_takes_over(proxy: Proxy, backend: int) -> None:
    proxy.configure({"one": backend})
    orphan = start_under_manager(proxy)
    assert proxy.manager is not None
    proxy.manager.kill()
    proxy.manager.wait()
    assert serves(proxy)
    proxy.configure()
    proxy.start()
    wait_for(lambda: not running(orphan), 25)  # Without a successor it ends after 30 s.
    assert serves(proxy)
