"""Ports of this host: whether they are free, and a block of them for each local cluster."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable

from serving.compat.variables import serve_ports
from serving.errors import ClusterError, PortTakenError

# Above the ports of Ray's workers, and below those that Linux assigns to connections.
FIRST, LAST, SIZE = 20_000, 32_000, 500
NAMED = 8
"""The first ports of a block have a fixed use; replicas take the ports after them."""
SINGLE = range(LAST, 32_768)
"""The range for a single port."""


class Ports:
    """A block of ports that no other cluster of this host has, until it is closed.

    Choosing free ports is not enough: a replica listens a minute after its port was chosen, and of
    two clusters that start in the same minute, one would answer the other's requests.

    Raises:
        ClusterError: Every block is in use.
    """

    def __init__(self) -> None:
        blocks = list(range(FIRST, LAST, SIZE))
        random.shuffle(blocks)
        for self._base in blocks:
            self._last = socket.socket()  # The process that holds the last port owns the block.
            try:
                self._last.bind(("", self._base + SIZE - 1))
                if _are_free(range(self._base, self._base + 2 * NAMED)):
                    return
            except OSError:
                pass
            self._last.close()
        raise ClusterError(
            f"{len(blocks)} clusters or more run on this host, and each needs {SIZE} ports between "
            f"{FIRST} and {LAST}. End one of them, or set RAY_ADDRESS to join one."
        )

    def fileno(self) -> int:
        """Return the descriptor that lets a child hold the block (``pass_fds``)."""
        return self._last.fileno()

    def close(self) -> None:
        """Release the block, unless a child holds it."""
        self._last.close()

    @property
    def head(self) -> int:
        """The port of Ray's control service."""
        return self._base + 4

    @property
    def client(self) -> int:
        """The port of Ray Client."""
        return self._base + 5

    @property
    def endpoint(self) -> int:
        """The default port of the endpoint."""
        return self._base + 6

    def variables(self) -> dict[str, str]:
        """Return the environment variables that keep Ray Serve within the block.

        While a change leaves no replica ready, HAProxy sends requests to the fallback proxy. Two
        clusters would share Serve's one port for it, and so each other's requests. Serve knows
        which ports of replicas an old HAProxy may still use, but only those of its own cluster.
        """
        middle = self._base + SIZE // 2
        return serve_ports(
            proxies=self._base,
            replicas_http=(self._base + NAMED, middle - 1),
            replicas_grpc=(middle, self._base + SIZE - 2),
        )


def _are_free(ports: Iterable[int], host: str = "") -> bool:
    try:
        for port in ports:
            with socket.socket() as probe:
                probe.bind((host, port))
    except OSError:
        return False
    return True


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that is free now and that Linux assigns to no connection.

    Raises:
        ClusterError: No port is free, for example because ``host`` is not this machine's.
    """
    for port in random.sample(SINGLE, 50):
        if _are_free([port], host):
            return port
    raise ClusterError(
        f"host = {host!r} is not an address of this machine, or has no free port between "
        f"{SINGLE.start} and {SINGLE.stop - 1}. Choose another host, or set port."
    )


def check_port(host: str, port: int) -> None:
    """Raise :class:`PortTakenError` if ``port`` has a listener on ``host``."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTakenError(
                f"port = {port} on host = {host!r} is not available ({error.strerror}). Choose "
                "another port, or port = 0 for a free one."
            ) from None
