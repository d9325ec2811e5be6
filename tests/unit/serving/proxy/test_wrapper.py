"""The wrapper with a real HAProxy: slow headers, reloads, missing routes and other templates."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from pathlib import Path

import pytest
from support.haproxy import Proxy, read_all, wait_for

from serving.proxy import admin
from serving.proxy.configuration import admin_socket
from serving.proxy.wrapper import CONNECTIONS_VARIABLE, PER_ADDRESS_VARIABLE

HALF = b"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nContent-Le"
ATTACK = 4100


def own_address() -> str:
    """Return an address of this host other than loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this host has loopback only")
        return str(probe.getsockname()[0])


def half_headers(proxy: Proxy, address: str, count: int) -> list[socket.socket]:
    """Return the connections that the proxy has not reset at once."""
    sockets = []
    for _ in range(count):
        try:
            connection = proxy.connect(address, address)
            sockets.append(connection)
            connection.sendall(HALF)
        except ConnectionError:
            continue
    return sockets


def flood(proxy: Proxy, count: int) -> list[socket.socket]:
    """Return this number of open connections with half a header each.

    On a busy machine the proxy ends the first ones with 408 before the last ones are open.
    """
    while True:
        wait_for(lambda: proxy.connections() == 0, 60)
        sockets = half_headers(proxy, "127.0.0.2", count)
        for _ in range(10):
            if proxy.admitted() == proxy.connections() == count:
                return sockets
            time.sleep(0.1)
        for connection in sockets:
            connection.close()


def closed(sockets: list[socket.socket]) -> int:
    """Return how many of these connections the proxy has ended without a byte."""
    ended = 0
    for connection in sockets:
        connection.setblocking(False)
        try:
            ended += connection.recv(1) == b""
        except BlockingIOError:
            pass
        except ConnectionError:
            ended += 1
    return ended


def answers(proxy: Proxy, seconds: float) -> list[float]:
    """Return the seconds that each of a second's ten requests took, each on a new connection."""
    taken, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.monotonic()
        assert proxy.request().startswith(b"HTTP/1.1 200"), "a valid request failed"
        taken.append(time.monotonic() - start)
        time.sleep(0.1)
    return taken


class TestSlowHeaders:
    @pytest.mark.slow
    def test_they_end_with_408(self, proxy: Proxy, backend: int) -> None:
        proxy.configure({"one": backend})
        proxy.start()
        start = time.monotonic()
        with proxy.connect() as silent, proxy.connect() as slow:
            slow.sendall(HALF)
            assert read_all(slow).startswith(b"HTTP/1.1 408 ")
            assert 9 < time.monotonic() - start < 60
            assert read_all(silent).startswith(b"HTTP/1.1 408 ")

    @pytest.mark.parametrize("local", [True, False])
    def test_a_flood_of_them_delays_nobody(self, proxy: Proxy, backend: int, local: bool) -> None:
        address = "127.0.0.1" if local else own_address()
        proxy.configure({"one": backend})
        proxy.start()
        with proxy.connect() as established:
            proxy.request(connection=established)
            sockets = half_headers(proxy, address, ATTACK)
            try:
                # One that waits for a connection of the flood waits until that ends, after 10 s.
                assert max(answers(proxy, 3)) < 7
                assert proxy.request(connection=established)
                if not local:
                    assert len(sockets) - closed(sockets) == 2048
            finally:
                for connection in sockets:
                    connection.close()

    def test_the_last_connections_are_for_addresses_with_an_answered_request(
        self, proxy: Proxy, backend: int
    ) -> None:
        address = own_address()
        proxy.variables[CONNECTIONS_VARIABLE] = "256"
        proxy.configure({"one": backend})
        proxy.start()
        sockets = flood(proxy, 224)  # All but 256 / 8.
        try:
            with pytest.raises(ConnectionError):
                proxy.request("/", proxy.connect(address, address))
        finally:
            for connection in sockets:
                connection.close()
        wait_for(lambda: proxy.connections() == 0, 60)
        assert proxy.request().startswith(b"HTTP/1.1 200")
        with proxy.connect(address, address) as known:
            assert proxy.request("/", known, "POST")
        sockets = flood(proxy, 224)
        try:
            with proxy.connect(address, address) as known:
                assert proxy.request("/", known)
        finally:
            for connection in sockets:
                connection.close()


def test_many_connections_over_loopback_are_accepted(proxy: Proxy, backend: int) -> None:
    proxy.configure({"one": backend})
    proxy.variables[PER_ADDRESS_VARIABLE] = "16"
    proxy.start()
    connections = []
    for _ in range(800):
        connections.append(proxy.connect())
        assert proxy.request(connection=connections[-1])
    assert proxy.connections() == 800
    for connection in connections:
        connection.close()


@pytest.mark.slow
def test_a_slow_answer_outlasts_the_clients_timeout(proxy: Proxy, backend: int) -> None:
    proxy.configure({"one": backend}, timeout_client_s=1)
    proxy.start()
    assert proxy.request("/slow/4", method="POST").startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_a_stream_survives_reloads(proxy: Proxy, backend: int) -> None:
    proxy.configure({"one": backend}, hard_stop_after_s=120)
    first = proxy.start()
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(proxy.request("/stream/6")))
    reader.start()
    time.sleep(0.5)
    pids = {first}
    for _ in range(3):
        proxy.configure({"one": backend, "two": backend})
        pids.add(proxy.reload())
        assert proxy.request().startswith(b"HTTP/1.1 200")
    reader.join(120)
    assert len(pids) == 4
    assert re.findall(rb"^(\d+)\n", received[0], re.MULTILINE) == [b"%d" % n for n in range(60)]


def test_without_routes_the_answer_is_503(proxy: Proxy, backend: int) -> None:
    proxy.configure()
    proxy.start()
    head, _, body = proxy.request("/v1/models").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in head.lower()
    assert json.loads(body)["error"]["code"] == "unavailable"
    proxy.configure({"one": backend})
    proxy.reload()
    assert proxy.request().startswith(b"HTTP/1.1 200")


def test_without_a_replica_the_answer_is_503(proxy: Proxy) -> None:
    proxy.configure({})
    proxy.start()
    head, _, body = proxy.request("/v1/models").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in head.lower()
    assert json.loads(body)["error"]["type"] == "server_error"


def test_another_template_is_left_as_it_is(proxy: Proxy, backend: int) -> None:
    path = proxy.configure({"one": backend})
    text = path.read_text().replace("frontend http_frontend", "frontend renamed")
    path.write_text(text)
    proxy.start()
    assert proxy.request().startswith(b"HTTP/1.1 200")
    assert path.read_text() == text
    assert len([line for line in proxy.log.splitlines() if "unchanged" in line]) == 1


def test_what_haproxy_does_not_accept_is_not_installed(
    proxy: Proxy, backend: int, tmp_path: Path
) -> None:
    path = proxy.configure({"one": backend})
    text = path.read_text()
    checker = tmp_path / "haproxy"
    real = re.search(r"'(\S+/bin/haproxy)'", proxy.program.read_text())
    assert real is not None
    checker.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit 1\nexec {real.group(1)} "$@"\n')
    checker.chmod(0o755)
    proxy.program.write_text(proxy.program.read_text().replace(real.group(1), str(checker)))
    proxy.start()
    assert path.read_text() == text
    assert "does not accept" in proxy.log


def test_it_becomes_haproxy_and_starts_fast(proxy: Proxy, backend: int) -> None:
    proxy.configure({"one": backend})
    pid = proxy.start()
    assert Path(f"/proc/{pid}/comm").read_text() == "haproxy\n"
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    assert str(proxy.folder / "haproxy.cfg").encode() in arguments
    assert admin.owner(proxy.admin_socket) == (pid, proxy.admin_socket)


def test_no_socket_has_a_longer_path_than_ray_serves_own(proxy: Proxy, backend: int) -> None:
    """The path of Ray Serve's socket nearly has the length that HAProxy allows."""
    proxy.configure({"one": backend})
    proxy.start()
    standby = (proxy.folder / "haproxy.cfg.standby").read_text()
    assert len(admin_socket(standby)) <= len(proxy.admin_socket)
    assert admin_socket(standby) != proxy.admin_socket
