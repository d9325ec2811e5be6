"""A program that starts processes through a fork server, and prints what they find as JSON.

Usage: fork_program.py CASE. The server imports `fork_preload`, which takes a while and notes its
process in a variable of its own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

from serving.engine import fork_server


def facts() -> dict[str, Any]:
    """What a process finds: its preloaded module, environment, priority, parent and threads."""
    preloaded = sys.modules.get("fork_preload")
    return {
        "preloaded_by": preloaded.PID if preloaded else None,
        "value": os.environ.get("VALUE"),
        "other": os.environ.get("OTHER"),
        "niceness": os.nice(0),
        "parent": os.getppid(),
        "pid": os.getpid(),
    }


def report(pipe: Connection) -> None:
    """Send the facts of this process."""
    pipe.send(facts())


def report_two(pipe: Connection) -> None:
    """Send the facts of this process, and of one that it starts."""
    pipe.send(facts())
    pipe.send(run(report)[0])


def sleep(pipe: Connection) -> None:
    """Send the facts of this process, and wait."""
    pipe.send(facts())
    time.sleep(600)


def run(target: Any, replies: int = 1) -> list[dict[str, Any]]:
    """Run a process and return what it sends."""
    context = fork_server.EngineContext()
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(writer,))
    process.start()
    writer.close()
    found = [reader.recv() for _ in range(replies)]
    process.join()
    return found


def server_pid() -> int:
    """The process of the fork server."""
    pid: int = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return pid


def nested() -> Any:
    """A process and one that it starts itself."""
    return run(report_two, 2)


def changed() -> Any:
    """A process after the environment and the priority of this one have changed."""
    os.environ["VALUE"] = "late"
    os.environ["LD_LIBRARY_PATH"] = "/opt/lib"  # Importing some packages sets it.
    del os.environ["OTHER"]
    os.nice(3)
    return run(report)


def other_libraries() -> Any:
    """A process that must be loaded with another variable than the server."""
    os.environ["OMP_PLACES"] = "{0}"
    return run(report)


def dead_server() -> Any:
    """A process after the server has been killed while it imports, and cannot be started again."""
    os.kill(server_pid(), signal.SIGKILL)
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]
    return run(report)


def killed_later() -> Any:
    """Whether a process ends, and is known to have ended, when the server is killed."""
    context = fork_server.EngineContext()
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=sleep, args=(writer,))
    process.start()
    writer.close()
    pid = reader.recv()["pid"]
    os.kill(server_pid(), signal.SIGKILL)
    try:
        reader.recv()
    except EOFError:
        ended = True
    process.join(60)
    return [{"pid": pid, "ended": ended, "known": process.exitcode is not None}]


if __name__ == "__main__":
    os.environ |= {"VALUE": "early", "OTHER": "x"}
    fork_server.start_fork_server("fork_preload")
    print(json.dumps({"server": server_pid(), "replies": globals()[sys.argv[1]]()}))
