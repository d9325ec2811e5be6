"""Starts a replica's process of Ray as a fork of one that has imported vLLM.

Ray runs ``python -m serving.engine.worker_launcher WORKER ARGUMENT...`` instead of
``python WORKER ARGUMENT...`` for a replica whose runtime environment has
:func:`worker_command` as its ``py_executable``. The launcher asks the node's fork server for a
process that runs WORKER, and ends with that process. It starts the server for the first replica. If
it gets no process from the server, it becomes the worker itself, which then imports vLLM.

There is a server for each set of variables that replicas are started with, because packages read
variables when they are imported. The supervisor of the local cluster ends it.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import runpy
import shlex
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from multiprocessing import forkserver, popen_forkserver
from pathlib import Path
from typing import Any

from serving.compat.vllm_processes import keep_fork_server
from serving.engine.fork_server import (
    CPU_MARK,
    EngineProcess,
    add_preloaded_libraries,
    loader_variables,
)

MODULE = "serving.engine.worker_launcher"
PRELOAD = "serving.engine.replica_preload"
SOCKET_OPTION = "--raylet-name="
"""The argument of a worker with its node's socket; the server's socket is in the same folder."""
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Variables that the server must not have."""
OF_ONE_WORKER = (*TOKENS, CPU_MARK, "RAY_JOB_ID")
"""Variables that no package reads when it is imported, and that differ between replicas."""
logger = logging.getLogger(__name__)


def worker_command(python: str) -> str:
    """Return Ray's ``py_executable`` for replicas on nodes with this interpreter."""
    return f"{shlex.quote(python)} -m {MODULE}"


def server_socket(arguments: list[str]) -> Path:
    """Return the path of the server's socket for a worker with these arguments.

    It is not longer than the paths of Ray's own sockets in that folder.

    Raises:
        LookupError: The arguments do not name the node's socket.
    """
    names = [text.removeprefix(SOCKET_OPTION) for text in arguments if SOCKET_OPTION in text]
    if not names:
        raise LookupError(f"no argument begins with {SOCKET_OPTION}")
    shared = sorted((k, v) for k, v in os.environ.items() if k not in OF_ONE_WORKER)
    key = hashlib.sha256(repr((names[0], shared)).encode()).hexdigest()[:6]
    return Path(names[0]).with_name(f"fork_{key}")


def start_server(path: Path) -> None:
    """Start a server that listens at ``path``, unless another launcher is faster."""
    with suppress(FileNotFoundError):
        path.unlink()
    own = path.with_name(f"f_{os.getpid()}")
    with socket.socket(socket.AF_UNIX) as listener:
        mask = os.umask(0o077)
        listener.bind(str(own))
        os.umask(mask)
        listener.listen(128)
        try:
            # A client never finds a socket without a listener.
            os.link(own, path)
        except FileExistsError:
            return
        finally:
            own.unlink()
        _start_server(listener, path)


def _start_server(listener: socket.socket, path: Path) -> None:
    log = path.parents[1] / "logs" / f"{path.name}.err"
    with log.open("ab") if log.parent.is_dir() else tempfile.TemporaryFile() as output:
        subprocess.Popen(
            [sys.executable, "-m", MODULE, "serve", str(listener.fileno()), PRELOAD],
            env={name: value for name, value in os.environ.items() if name not in TOKENS},
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def serve(listener: int, preload: str) -> None:
    """Import a module, then fork a process for each client, until this process is killed."""
    # `main` ends when no process has the other end of this pipe; this one keeps it.
    alive, _ = os.pipe()
    forkserver.main(listener, alive, [preload])


class WorkerProcess(EngineProcess):
    """A process of a worker, whose replica decides how it starts those of its engine."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return popen_forkserver.Popen(process_obj)

    def _prepare_title(self) -> None:
        pass  # Ray sets the title with a function of its own.

    def _use_server(self) -> None:
        pass


def run_worker(arguments: list[str]) -> None:
    """Run Ray's worker in this process, as a new interpreter would."""
    multiprocessing.set_start_method(None, force=True)
    multiprocessing.current_process().name = "MainProcess"
    if (random := sys.modules.get("numpy.random")) is not None:
        random.seed()
    sys.argv[:] = arguments
    runpy.run_path(arguments[0], run_name="__main__")


def launch(arguments: list[str]) -> int:
    """Run a worker in a process of the server; return its exit status.

    Raises:
        OSError, EOFError, LookupError: There is no server, or it has ended.
    """
    add_preloaded_libraries()
    path = server_socket(arguments)
    keep_fork_server(str(path))
    # The server does not end with its clients.
    forkserver._forkserver._forkserver_alive_fd = os.open(os.devnull, os.O_RDONLY)  # type: ignore[attr-defined]
    EngineProcess.server_variables = loader_variables()
    process = WorkerProcess(target=run_worker, args=(arguments,))
    try:
        process.start()
    except (FileNotFoundError, ConnectionRefusedError):
        start_server(path)
        process.start()
    process.join()
    return process.exitcode or 0


def main(arguments: list[str]) -> None:
    """Run the server, or a worker."""
    if arguments[0] == "serve":
        serve(int(arguments[1]), arguments[2])
    try:
        sys.exit(launch(arguments))
    except (OSError, EOFError, LookupError) as error:
        logger.warning("No process was forked for a replica (%r); importing vLLM again.", error)
    os.execv(sys.executable, [sys.executable, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
