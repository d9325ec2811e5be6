"""Holds a local Ray head for exactly as long as the process that asked for it lives.

Run as a child with a pipe on standard input. It starts ``ray start --head`` with the arguments
given, answers one line on standard output (``started`` or ``failed``), and ends everything once the
pipe closes: on purpose, or because the parent died in whatever way. As a child subreaper it
inherits every orphan of the tree (raylet, replicas, engine processes, HAProxy), so that a walk down
from its own process id finds them all. It imports next to nothing: it must start at once.
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
    """Have orphaned descendants re-parented to this process instead of to init (prctl(2))."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def parents() -> dict[int, int]:
    """Parent process id of every process, from ``/proc/PID/stat``."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The command in parentheses may hold spaces and parentheses of its own.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            found[int(entry.name)] = int(fields[1])
    return found


def descendants(root: int) -> list[int]:
    """Process ids below ``root``, parents before children."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def reap() -> None:
    """Collect the exit status of every child that has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def end_all(grace_s: float = GRACE_S) -> None:
    """Ask every descendant to end, then kill what is left, until none is."""
    deadline = time.monotonic() + grace_s
    sent = signal.SIGTERM
    while True:
        reap()
        left = descendants(os.getpid())
        if not left:
            return
        if time.monotonic() > deadline:
            sent = signal.SIGKILL
        for pid in left:
            try:
                os.kill(pid, sent)
            except ProcessLookupError:
                continue
        time.sleep(0.05 if sent == signal.SIGKILL else 0.25)


def main(argv: list[str]) -> int:
    """``supervisor STATE_DIR RAY_START_ARGUMENT...``; the folder goes when the cluster goes."""
    state, arguments = Path(argv[0]), argv[1:]
    # An interrupt of the notebook is for the kernel; the cluster goes on.
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
        # After a failure too: the parent reads the log before the folder goes.
        sys.stdin.buffer.read()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut this short
        end_all()
        shutil.rmtree(state, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
