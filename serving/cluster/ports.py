"""Ports of this host: free ones, taken ones, and a block for each local cluster."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable

from serving.errors import ClusterError, PortTakenError

# Above the ports of Ray's workers, below those that Linux gives to connections.
FIRST, LAST, SIZE = 20_000, 32_000, 500
NAMED = 8  # the first of a block have names; replicas take those after them
SINGLE = range(LAST, 32_768)  # for those that need just one


class Ports:
    """A block of ports that no other cluster of this host has, until it is closed.

    Ports that are merely free would not do: a replica listens a minute after its port was chosen,
    and of two clusters that started in that minute one would answer the other's requests.

    Raises:
        ClusterError: every block has its cluster.
    """

    def __init__(self) -> None:
        blocks = list(range(FIRST, LAST, SIZE))
        random.shuffle(blocks)
        for self._base in blocks:
            self._last = socket.socket()  # whoever holds it has the block
            try:
                self._last.bind(("", self._base + SIZE - 1))
                if _are_free(range(self._base, self._base + 2 * NAMED)):
                    return
            except OSError:
                pass
            self._last.close()
        raise ClusterError(
            f"{len(blocks)} clusters or more run on this host, and each needs {SIZE} ports between "
            f"{FIRST} and {LAST}. End one of them, or attach to it: RAY_ADDRESS."
        )

    def fileno(self) -> int:
        """What a child needs to keep the block beyond this process (``pass_fds``)."""
        return self._last.fileno()

    def close(self) -> None:
        """Give the block back, unless a child keeps it."""
        self._last.close()

    @property
    def head(self) -> int:
        """Of Ray's control service."""
        return self._base + 4

    @property
    def client(self) -> int:
        """Of Ray Client."""
        return self._base + 5

    @property
    def endpoint(self) -> int:
        """Where the cluster answers by default."""
        return self._base + 6

    def variables(self) -> dict[str, str]:
        """Ray Serve's environment that keeps it within the block.

        HAProxy sends to the fallback, a proxy that stands in for replicas, while a change leaves no
        replica ready. Two clusters would share Serve's one port for it, and with that each other's
        requests. Of replicas' ports Serve knows which one an old HAProxy may still send to, but in
        its own cluster alone.
        """
        middle = self._base + SIZE // 2
        ports = {
            "FALLBACK_PROXY_HTTP": self._base,
            "FALLBACK_PROXY_GRPC": self._base + 1,
            "HAPROXY_METRICS": self._base + 2,
            "HAPROXY_STATS": self._base + 3,
            "DIRECT_INGRESS_MIN_HTTP": self._base + NAMED,
            "DIRECT_INGRESS_MAX_HTTP": middle - 1,
            "DIRECT_INGRESS_MIN_GRPC": middle,
            "DIRECT_INGRESS_MAX_GRPC": self._base + SIZE - 2,
        }
        return {f"RAY_SERVE_{name}_PORT": str(port) for name, port in ports.items()}


def _are_free(ports: Iterable[int], host: str = "") -> bool:
    try:
        for port in ports:
            with socket.socket() as probe:
                probe.bind((host, port))
    except OSError:
        return False
    return True


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port nobody listens on now, of those that Linux gives to no connection.

    Raises:
        ClusterError: none was found, as where ``host`` is not this machine's.
    """
    for port in random.sample(SINGLE, 50):
        if _are_free([port], host):
            return port
    raise ClusterError(
        f"host = {host!r} is not an address of this machine, or has no free port between "
        f"{SINGLE.start} and {SINGLE.stop - 1}. Choose another host, or name a port."
    )


def check_port(host: str, port: int) -> None:
    """Raise :class:`PortTakenError` if ``port`` has a listener on ``host``."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTakenError(
                f"port = {port} on host = {host!r} cannot be listened on ({error.strerror}). "
                "Choose another port, or port = 0 for a free one."
            ) from None
