"""Local clusters of other users and processes, with a real Ray and without an engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.paths import ROOT
from support.processes import names
from support.users import OTHER, needs_root, with_mounts

from serving.cluster.supervisor import descendants

pytestmark = [pytest.mark.engine, pytest.mark.slow]

# Python may be installed in root's home, which other users cannot enter.
READABLE_PYTHON = """
home=$(mktemp -d) && mount --bind "$HOME" "$home" && mount -t tmpfs -o mode=755 tmpfs "$HOME"
for part in $(ls -A "$home"); do
  case "$part" in .ray|.cache) continue ;; esac
  [ -d "$home/$part" ] || continue
  mkdir "$HOME/$part" && mount --bind "$home/$part" "$HOME/$part"
done
"""
SECOND_USER = f"""
import os
os.setgroups([]), os.setgid({OTHER}), os.setuid({OTHER})
for name in ("HOME", "USER", "LOGNAME"):
    os.environ.pop(name, None)
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
import ray
from serving.cluster import connection

connection.connect()
print("USER", ray.get(ray.remote(lambda: os.getuid()).remote()))
connection.disconnect()
"""
CONNECT = """
import sys
from serving.cluster import connection
cluster = connection.connect()
print("CONNECTED", cluster.address, flush=True)
sys.stdin.read()
"""
AUTO = """
from serving.cluster import connection
from serving.errors import ClusterError
try:
    connection.connect(address="auto")
except ClusterError as error:
    print("REJECTED", error)
"""


@needs_root
def test_a_second_user_without_a_home_starts_ray() -> None:
    folder = Path("/tmp") / f"llm-{OTHER}"
    ran = with_mounts(READABLE_PYTHON, SECOND_USER, timeout_s=250, RAY_TMPDIR="/tmp")
    assert f"USER {OTHER}" in ran.stdout, ran.stdout + ran.stderr[-3000:]
    assert (folder.stat().st_uid, folder.stat().st_mode & 0o777) == (OTHER, 0o700)


def test_auto_is_rejected_while_another_process_has_a_private_cluster() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CONNECT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as owner:
        assert owner.stdout is not None
        word, address = owner.stdout.readline().split()
        assert word == "CONNECTED"
        joining = subprocess.run([sys.executable, "-c", AUTO], capture_output=True, text=True)
        owner.communicate()
    assert "REJECTED address = 'auto'" in joining.stdout, joining.stderr[-3000:]
    assert f"{address} (private to process {owner.pid})" in joining.stdout


def test_an_interrupt_while_ray_starts_leaves_nothing() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CONNECT], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as kernel:
        while "gcs_server" not in names(pids := descendants(kernel.pid)).values():
            assert kernel.poll() is None
            time.sleep(0.05)
        os.kill(kernel.pid, signal.SIGINT)
        start = time.monotonic()
        while any(name for pid, name in names(pids).items() if pid != kernel.pid):
            assert time.monotonic() - start < 60
            time.sleep(0.05)
        assert "KeyboardInterrupt" in kernel.communicate()[1]
