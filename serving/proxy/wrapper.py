"""Runs in place of HAProxy: amends the configuration, starts a guard, and becomes HAProxy.

Ray Serve runs the program that ``RAY_SERVE_HAPROXY_BINARY_PATH`` names for every start and reload,
and identifies it by its process id. The wrapper therefore replaces itself with HAProxy. Whatever
fails here must not keep HAProxy from starting: the configuration then stays as Ray wrote it, and
one line of HAProxy's log says why.

It imports only a few modules of the standard library, so that it starts in milliseconds.
"""

from __future__ import annotations

import os
import resource
import sys

from serving.proxy import admin, configuration

CONNECTIONS_VARIABLE = "LLM_WORKBENCH_PROXY_CONNECTIONS"
CONNECTIONS = 8192
"""Connections of a proxy at a time, if it may open enough files; Ray Serve's default is 4096."""
PER_ADDRESS_VARIABLE = "LLM_WORKBENCH_CONNECTIONS_PER_ADDRESS"
PER_ADDRESS = 2048


def main(arguments: list[str]) -> None:
    """Run ``wrapper HAPROXY ARGUMENT...`` with the arguments that Ray Serve gives HAProxy."""
    haproxy, options = arguments[0], arguments[1:]
    try:
        options = prepare(haproxy, options)
    except Exception as error:
        warn(f"HAProxy starts with the configuration of Ray Serve, unchanged: {error}")
    os.execv(haproxy, [haproxy, *options])


def prepare(haproxy: str, options: list[str]) -> list[str]:
    """Amend the configuration that the options name, start a guard, and return the options.

    If another process of HAProxy serves in place of the one to start, because that one or its
    manager ended unexpectedly, the options let the new process take over the listening sockets.
    """
    if "-f" not in options:
        return options
    path = options[options.index("-f") + 1]
    with open(path) as file:
        written = file.read()
    socket = configuration.admin_socket(written)
    standby = standby_path(path)
    predecessor = None
    if "-sf" not in options:
        predecessor = admin.owner(socket) or admin.owner(standby_socket(socket))
    text = amended(written)
    if predecessor and not configuration.knows_routes(written) and os.path.exists(standby):
        # The manager is new and learns the routes in a moment. Until then they are as they were.
        with open(standby) as file:
            text = configuration.with_admin_socket(file.read(), socket)
    draft = path + ".new"
    write(text, draft)
    check(haproxy, draft)
    write(configuration.with_admin_socket(text, standby_socket(socket)), standby)
    os.replace(draft, path)
    start_guard(haproxy, path, socket)
    if predecessor is None:
        return options
    pid, place = predecessor
    return [*options, "-sf", str(pid), "-x", place]


def proxy_settings(max_connections_per_address: int) -> dict[str, str]:
    """Return the variables of the processes that start HAProxy."""
    return {PER_ADDRESS_VARIABLE: str(max_connections_per_address)}


def standby_path(path: str) -> str:
    """Return the configuration of the process that serves while HAProxy is being replaced."""
    return path + ".standby"


def standby_socket(socket: str) -> str:
    """Return the admin socket of that process.

    It is as long as Ray Serve's: HAProxy allows 97 bytes, and Ray's path has the id of the node.
    """
    return os.path.join(os.path.dirname(socket), "spare.sock")


def amended(text: str) -> str:
    """Return the configuration with this project's settings."""
    connections = int(os.environ.get(CONNECTIONS_VARIABLE, CONNECTIONS))
    per_address = int(os.environ.get(PER_ADDRESS_VARIABLE, PER_ADDRESS))
    _, max_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if max_files == resource.RLIM_INFINITY:
        max_files = 2**20
    return configuration.amend(text, connections, per_address, max_files)


def write(text: str, path: str) -> None:
    """Write a file that has its old or its new text at any time."""
    with open(path + ".part", "w") as file:
        file.write(text)
    os.replace(path + ".part", path)


def check(haproxy: str, path: str) -> None:
    """Raise ``TemplateError`` if HAProxy does not accept the configuration at ``path``."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    actions = [(os.POSIX_SPAWN_DUP2, nowhere, stream) for stream in (1, 2)]
    command = [haproxy, "-c", "-f", path]
    pid = os.posix_spawn(haproxy, command, os.environ, file_actions=actions)
    os.close(nowhere)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
        raise configuration.TemplateError(f"HAProxy does not accept {path}")


def start_guard(haproxy: str, path: str, socket: str) -> None:
    """Start the guard of this process (``guard``) as a detached process."""
    command = [sys.executable, "-S", "-s", "-m", "serving.proxy.guard"]
    command += [haproxy, str(os.getpid()), str(os.getppid()), standby_path(path), socket]
    child = os.fork()
    if child == 0:
        # The program that HAProxy becomes does not wait for children: the guard is a grandchild.
        os.setsid()
        os.posix_spawn(sys.executable, command, os.environ)
        os._exit(0)
    os.waitpid(child, 0)


def warn(message: str) -> None:
    """Write one line to HAProxy's log."""
    print(f"WARNING: {' '.join(message.split())}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
