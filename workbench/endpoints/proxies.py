"""Which proxy the environment prescribes for a URL, and which addresses never use one."""

from __future__ import annotations

import ipaddress
import sys
from contextlib import suppress
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

_CLUSTER_DOMAINS = (".svc", ".cluster.local")
"""Ends of the names of services within a Kubernetes cluster."""


def bypasses_proxy(url: str) -> bool:
    """Return whether `url` is on this machine or in the cluster, which no proxy can reach."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    return _is_loopback(host) or host.endswith(_CLUSTER_DOMAINS) or host in _node_addresses()


def environment_proxy(url: str) -> str | None:
    """Return the proxy that `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` give `url`."""
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    host = parts.hostname or ""
    if not proxy or _in_network(host, proxies.get("no", "")):
        return None
    # The port is given too, because an entry of `no_proxy` may have one.
    if proxy_bypass(host) or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _node_addresses() -> set[str]:
    """Return the addresses of the nodes of the Ray cluster that this process is connected to."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return set()
    return {str(node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]}


def _in_network(host: str, no_proxy: str) -> bool:
    """Return whether `host` is an address in one of the networks of `no_proxy`.

    `urllib` compares names only, and does not know networks such as 10.0.0.0/8.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for entry in no_proxy.split(","):
        with suppress(ValueError):
            if address in ipaddress.ip_network(entry.strip(), strict=False):
                return True
    return False
