"""Amends the HAProxy configuration that Ray Serve renders (``haproxy_templates``, Ray 2.60.0).

Ray Serve has no variables for these settings:

- ``timeout http-request``: a client that does not send its headers in time gets 408.
- A limit of connections per source address. The last connections are reserved for addresses that
  have had a request answered.
- While no route is known, every request gets 503 with ``Retry-After`` instead of 404.
- HAProxy's own 503, when no replica can be reached, stays 503. Ray Serve turns it into 500.

This module imports the standard library only, and little of it.
"""

from __future__ import annotations

import re

HEADER_TIMEOUT_S = 10
"""Seconds within which a client must send the headers of a request."""

RESERVED_SHARE = 8
"""One in so many connections is reserved for addresses that have had a request answered."""

FILES_PER_CONNECTION = 2.5
"""Two sockets, and a pipe of two files for every fourth connection (``option splice-response``)."""
OTHER_FILES = 400
"""Open files that HAProxy needs besides its connections: health checks, listeners and threads."""

UNAVAILABLE = (
    r"{\"error\": {\"message\": \"No replica can be reached. Try again in a second.\", "
    r"\"type\": \"server_error\", \"param\": null, \"code\": \"unavailable\"}}"
)
RETRY = f'content-type application/json string "{UNAVAILABLE}" hdr Retry-After 1'

_SOCKET = r"^    stats socket (\S+) "
_MAXCONN = r"^    maxconn \d+$"
_TIMEOUT = r"^    timeout client .*$"
_ERROR_FILE = r"^    errorfile 503 .*$"
_BIND = r"^frontend http_frontend\n    bind .*$"
_NOT_FOUND = r'^    http-request return status 404 content-type text/plain lf-string "Path .*$'
_ROUTES = r"^    http-request return status (\d+) .* if routes$"
_NO_ROUTER = r'^(    http-request return status 503 .*"Ingress request router failed: \S+" )'
_ROUTE = r"^    use_backend "


class TemplateError(ValueError):
    """The configuration is not what Ray Serve's template renders."""


def amend(text: str, connections: int, per_address: int, max_files: int) -> str:
    """Return the configuration with this project's settings.

    Args:
        text: The configuration as Ray Serve wrote it.
        connections: The connections that HAProxy may have at a time, if it may open enough files.
        per_address: The connections that one address may have at a time, except over loopback.
        max_files: The open files that HAProxy may have.

    Raises:
        TemplateError: A line that is amended does not exist, or exists more than once.
    """
    possible = int((max_files - OTHER_FILES) / FILES_PER_CONNECTION)
    connections = max(min(connections, possible), 64)
    text = _replace(_MAXCONN, f"    maxconn {connections}", text)
    timeout = _only(_TIMEOUT, text).group(0)
    text = _replace(_TIMEOUT, f"{timeout}\n    timeout http-request {HEADER_TIMEOUT_S}s", text)
    text = _replace(_ERROR_FILE, f"    http-error status 503 {RETRY}", text)
    bind = _only(_BIND, text).group(0)
    text = _replace(_BIND, "\n".join([bind, *_connection_rules(connections, per_address)]), text)
    not_found = _only(_NOT_FOUND, text).group(0)
    if not knows_routes(text):
        text = text.replace(not_found, f"    http-request return status 503 {RETRY}")
    return re.sub(_NO_ROUTER, r"\1hdr Retry-After 1 ", text, flags=re.MULTILINE)


def _connection_rules(connections: int, per_address: int) -> list[str]:
    """Return the rules of the frontend that accept or reject a connection.

    A rejected connection is not counted, because the counting rule comes last. Loopback has all
    connections except the reserved ones: load generators and notebooks on this host use it.
    """
    shared = connections - connections // RESERVED_SHARE
    limit = min(per_address, shared)
    local = "{ src 127.0.0.0/8 ::1 }"
    return [
        "    stick-table type ipv6 size 100k expire 1h store conn_cur,gpt0",
        f"    tcp-request connection reject if {{ src_conn_cur ge {limit} }} !{local}",
        f"    tcp-request connection reject if {{ src_conn_cur ge {shared} }}",
        f"    tcp-request connection reject if {{ fe_conn gt {shared} }} !{{ src_get_gpt0 gt 0 }}",
        "    tcp-request connection track-sc0 src",
        "    http-response sc-set-gpt0(0) 1 if METH_POST { status 200 } !{ sc0_get_gpt0 gt 0 }",
    ]


def knows_routes(text: str) -> bool:
    """Return whether Ray Serve has configured the routes of its applications."""
    return bool(re.search(_ROUTE, text, re.MULTILINE)) or _only(_ROUTES, text).group(1) == "200"


def admin_socket(text: str) -> str:
    """Return the path of the socket by which a process of HAProxy is asked who it is."""
    return _only(_SOCKET, text).group(1)


def with_admin_socket(text: str, path: str) -> str:
    """Return the configuration with its admin socket at ``path``."""
    return text.replace(f"    stats socket {admin_socket(text)} ", f"    stats socket {path} ")


def _only(pattern: str, text: str) -> re.Match[str]:
    matches = list(re.finditer(pattern, text, re.MULTILINE))
    if len(matches) != 1:
        raise TemplateError(f"{len(matches)} lines match {pattern!r}, expected 1")
    return matches[0]


def _replace(pattern: str, line: str, text: str) -> str:
    match = _only(pattern, text)
    return text[: match.start()] + line + text[match.end() :]
