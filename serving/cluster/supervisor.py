"""Keeps a local Ray head running for exactly as long as the process that asked for it.

It is run as a child with a pipe on standard input. It starts ``ray start --head`` with the given
arguments, and writes one line to standard output: ``started``, or ``failed`` and the reason in the
lines after it. It ends everything when the pipe closes, also while Ray starts: intentionally, or
because the parent died in any way. As a child subreaper it
inherits every orphan of the tree (raylet, replicas, engine processes, HAProxy), so its descendants
are all of them. It imports the standard library only, so that it starts at once.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from serving.compat.ray import AGENT_FAILED
from serving.cpu import lower_session_priority

PR_SET_CHILD_SUBREAPER = 36
GRACE_S = 1.25
POLL_S = 0.1
LOG_END = 1500
"""Characters of a log that are reported."""


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


def start_ray(arguments: list[str], folder: Path) -> tuple[int, str]:
    """Run ``ray start --head``, unless the parent closes the pipe first.

    Args:
        arguments: The options of the command.
        folder: Ray's temporary folder, where the new session's logs are.

    Returns:
        The exit status, and the end of the output. If an agent of Ray ends while the command waits
        for it, the status is 1, and the text is the raylet's report.

    Raises:
        SystemExit: The pipe was closed.
    """
    # Not a file, because the disk may be full.
    log = os.memfd_create("ray-start")
    ray = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    while (code := ray.poll()) is None:
        if select.select([sys.stdin], [], [], POLL_S)[0]:
            sys.exit(0)
        if report := agent_report(folder, ray.pid):
            return 1, report
    size = os.fstat(log).st_size
    output = os.pread(log, LOG_END, max(0, size - LOG_END)).decode(errors="replace")
    return code, output if code == 0 else f"{output}\n{agent_report(folder, ray.pid)}"


def agent_report(folder: Path, pid: int) -> str:
    """Return what the raylet of the session that ``pid`` started wrote about an agent that ended.

    Ray waits for such a raylet until its time is over. The text is empty if no agent has ended.
    """
    for errors in folder.glob(f"session_*_{pid}/logs/raylet.err"):
        text, mark, rest = errors.read_text(errors="replace").partition(AGENT_FAILED)
        if mark:
            return f"{text[-LOG_END:]}{mark}{rest.splitlines()[0]}\n"
    return ""


def main(argv: list[str]) -> int:
    """Run ``supervisor STATE_DIR RAY_DIR RAY_START_ARGUMENT...``.

    STATE_DIR is deleted when the cluster ends. RAY_DIR is Ray's temporary folder.

    Returns:
        The exit status of ``ray start``.
    """
    state, ray, arguments = Path(argv[0]), Path(argv[1]), argv[2:]
    # Interrupting a cell of the notebook must not end the cluster.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lower_session_priority()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    become_subreaper()
    try:
        code, output = start_ray([*arguments, f"--temp-dir={ray}"], ray)
        print("started" if code == 0 else f"failed\n{output}", flush=True)
        sys.stdin.buffer.read()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # A second one must not interrupt this.
        end_all()
        shutil.rmtree(state, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
