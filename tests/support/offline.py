"""Commands in a network namespace with only a loopback interface."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import Any

import pytest

# Bring loopback up (SIOCSIFFLAGS with IFF_UP), check that there is no network, run the command.
OFFLINE = """
import fcntl, os, socket, struct, sys
with socket.socket() as probe:
    fcntl.ioctl(probe, 0x8914, struct.pack("16sh", b"lo", 1))
try:
    socket.create_connection(("192.0.2.1", 80), 5)
except OSError as error:
    print("NO NETWORK", error, flush=True)
else:
    sys.exit("there is a network")
os.execv(sys.argv[1], sys.argv[1:])
"""
NEEDS_ROOT = "a network namespace needs unshare and root"


def may_be_offline() -> bool:
    """Whether this user may create a network namespace."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode == 0


def run_offline(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command without a network; skip the test where that is not permitted."""
    if not may_be_offline():
        pytest.skip(NEEDS_ROOT)
    namespace = ["unshare", "--net", sys.executable, "-c", OFFLINE, *command]
    ran = subprocess.run(namespace, capture_output=True, text=True, **options)
    assert "NO NETWORK" in ran.stdout, ran.stderr
    return ran
