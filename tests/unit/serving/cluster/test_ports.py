"""Ports: checked with sockets that are really bound."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from serving.cluster import ports
from serving.cluster.ports import Ports, check_port, free_port
from serving.cluster.supervisor import descendants
from serving.errors import ClusterError, PortTakenError


@pytest.fixture
def taken() -> Iterator[int]:
    """A port with a listener."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


class TestCheckPort:
    def test_a_port_with_a_listener_is_taken(self, taken: int) -> None:
        with pytest.raises(PortTakenError) as caught:
            check_port("127.0.0.1", taken)
        message = str(caught.value)
        assert f"port = {taken}" in message
        assert "'127.0.0.1'" in message
        assert "port = 0" in message

    def test_a_listener_on_loopback_takes_the_port_on_every_address(self, taken: int) -> None:
        with pytest.raises(PortTakenError):
            check_port("0.0.0.0", taken)

    def test_a_free_port_stays_free(self) -> None:
        port = free_port()
        check_port("127.0.0.1", port)
        check_port("127.0.0.1", port)
        with socket.create_server(("127.0.0.1", port)):
            pass

    def test_a_port_in_time_wait_is_free(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port)) as client:
                accepted, _ = listener.accept()
                accepted.close()  # The side that closes first keeps the port in TIME_WAIT.
                client.recv(1)
        check_port("127.0.0.1", port)

    @pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
    def test_an_address_of_another_machine_is_rejected(self, host: str) -> None:
        with pytest.raises(PortTakenError, match=host):
            check_port(host, free_port())


class TestFreePort:
    def test_ports_differ_and_are_not_assigned_to_connections(self) -> None:
        found = {free_port() for _ in range(20)}
        assigned = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        assert len(found) > 1
        assert all(port < int(assigned[0]) for port in found)

    def test_an_address_of_another_machine_has_none(self) -> None:
        with pytest.raises(ClusterError, match="is not an address of this machine"):
            free_port("192.0.2.1")


class TestPorts:
    def test_a_block_is_held_before_anything_listens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(random, "shuffle", lambda blocks: None)
        with closing(Ports()) as first:
            with closing(Ports()) as second:
                assert second.endpoint != first.endpoint
            # As the supervisor holds it, while the process that asked for it is gone.
            command = [sys.executable, "-c", "input()"]
            holder = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[first.fileno()])
        with closing(Ports()) as third:
            assert third.endpoint != first.endpoint
        holder.communicate(b"\n")
        with closing(Ports()) as fourth:
            assert fourth.endpoint == first.endpoint

    @pytest.mark.parametrize("host", ["127.0.0.1", ""])
    def test_a_block_with_a_port_in_use_is_skipped(
        self, host: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(random, "shuffle", lambda blocks: None)
        with closing(Ports()) as first:
            pass
        with socket.socket() as replica:
            replica.bind((host, first.endpoint + 2))
            with closing(Ports()) as second:
                assert second.endpoint != first.endpoint

    def test_a_host_without_a_free_block_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ports, "_are_free", lambda block: False)
        with pytest.raises(ClusterError, match="24 clusters or more"):
            Ports()


DEPLOY = """
import sys
import workbench as wb
print("deploying", flush=True)
wb.deploy(wb.ServiceSpec(port=int(sys.argv[1]), model=wb.ModelSpec(max_model_len=256)))
"""


def test_deploying_on_a_taken_port_starts_nothing(taken: int) -> None:
    command = [sys.executable, "-c", DEPLOY, str(taken)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True) as child:
        output = child.stdout.read() if child.stdout else ""
        assert f"PortTakenError: port = {taken}" in output
        assert "starting Ray" not in output
        assert child.wait(timeout=60) != 0
        assert descendants(child.pid) == []
