"""Keeps a local Ray head running for exactly as long as the process that asked for it.

It is run as a child with a pipe on standard input. It starts ``ray start --head`` with the given
arguments, writes one line to standard output (``started`` or ``failed``), and ends everything when
the pipe closes: intentionally, or because the parent died in any way. As a child subreaper it
inherits every orphan of the tree (raylet, replicas, engine processes, HAProxy), so its descendants
are all of them. It imports the standard library only, so that it starts at once.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from serving.cpu import lower_session_priority

PR_SET_CHILD_SUBREAPER = 36
GRACE_S = 1.5


def become_subreaper() -> None:
    """Have orphaned descendants re-parented to this process instead of to init (prctl(2)).

    Raises:
        OSError: The call failed.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def parents() -> dict[int, int]:
    """Return the parent's process id of every process, from ``/proc/PID/stat``."""
    by_pid = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The command, in parentheses, may contain spaces and parentheses.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            by_pid[int(entry.name)] = int(fields[1])
    return by_pid


def descendants(root: int) -> list[int]:
    """Return the process ids below ``root``, parents before children."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    pids, queue = [], [root]
    while queue:
        below = children.get(queue.pop(), [])
        pids += below
        queue += below
    return pids


def reap() -> None:
    """Collect the exit status of every child that has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def end_all(grace_s: float = GRACE_S) -> None:
    """Terminate every descendant; after ``grace_s`` seconds kill those that remain."""
    deadline = time.monotonic() + grace_s
    signal_number = signal.SIGTERM
    while True:
        reap()
        remaining = descendants(os.getpid())
        if not remaining:
            return
        if time.monotonic() > deadline:
            signal_number = signal.SIGKILL
        for pid in remaining:
            try:
                os.kill(pid, signal_number)
            except ProcessLookupError:
                continue
        time.sleep(0.05 if signal_number == signal.SIGKILL else 0.25)


def main(argv: list[str]) -> int:
    """Run ``supervisor STATE_DIR RAY_START_ARGUMENT...``.

    The folder is deleted when the cluster ends.

    Returns:
        The exit status of ``ray start``.
    """
    state, arguments = Path(argv[0]), argv[1:]
    # Interrupting a cell of the notebook must not end the cluster.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lower_session_priority()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    become_subreaper()
    try:
        with (state / "ray-start.log").open("wb") as log:
            command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", *arguments]
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
            ).returncode
        print("started" if code == 0 else "failed", flush=True)
        # Also after a failure: the parent reads the log before the folder is deleted.
        sys.stdin.buffer.read()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # A second one must not interrupt this.
        end_all()
        shutil.rmtree(state, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
