"""Other Unix users, and file systems that are full or read-only; both need root."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

OTHER, THIRD = 64_001, 64_002
"""Ids of users that have no name and no home on this machine."""

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


def as_user(uid: int, function: Callable[[], Any], **variables: str | None) -> Any:
    """Return what the function returns in a process of this user, with changed variables."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            for name, value in variables.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
            result = function()
        except BaseException:
            result = AssertionError(traceback.format_exc())
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(result, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        result = pickle.load(pipe)
    os.waitpid(pid, 0)
    if isinstance(result, AssertionError):
        raise result
    return result


def with_mounts(
    mounts: str, program: str, *, timeout_s: float = 120, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a program in a mount namespace of its own, after these commands of a shell.

    Skips the test where mounts are not permitted.
    """
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("only root may mount file systems, and not in every container")
    script = f'set -e\n{mounts}\nexec {sys.executable} -c "$PROGRAM"'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        env=os.environ | {"PROGRAM": program, "PYTHONPATH": str(ROOT)} | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def mode(path: Path) -> int:
    """The permission bits of a file or folder."""
    return path.stat().st_mode & 0o7777
