"""The address `auto`, with processes that look like raylets, and real supervisors above them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT

from serving.cluster import discovery
from serving.cluster.discovery import LocalCluster, local_clusters, resolve_auto
from serving.errors import ClusterError

PUBLIC, PRIVATE = "192.0.2.1:6379", "192.0.2.1:20004"
SLEEP = "import time; time.sleep(600)"
# A stand-in for `ray start` that leaves a raylet, as Ray does.
START = f"""
import subprocess, sys
subprocess.Popen(["/x/raylet", "-c", {SLEEP!r}, "--gcs-address={PRIVATE}"],
                 executable=sys.executable, start_new_session=True)
"""


@contextlib.contextmanager
def raylet(address: str) -> Iterator[None]:
    command = ["/x/raylet", "-c", SLEEP, f"--gcs-address={address}", "--head"]
    with subprocess.Popen(command, executable=sys.executable) as process:
        try:
            yield
        finally:
            process.kill()


def seen(address: str) -> list[LocalCluster]:
    """The cluster with this address among those of the host, once its command line shows."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if clusters := [c for c in local_clusters() if c.address == address]:
            return clusters
        time.sleep(0.02)
    return []


def test_a_cluster_of_an_administrator_is_shared() -> None:
    with raylet(PUBLIC), raylet(PUBLIC):  # two nodes
        assert seen(PUBLIC) == [LocalCluster(PUBLIC, None)]


def test_a_cluster_of_a_supervisor_is_private_to_the_process_that_started_it(
    tmp_path: Path,
) -> None:
    package = tmp_path / "ray" / "scripts"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "scripts.py").write_text(START)
    state = tmp_path / "state"
    state.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "serving.cluster.supervisor", str(state), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as supervisor:
        assert seen(PRIVATE) == [LocalCluster(PRIVATE, os.getpid())]
        supervisor.communicate()


def on_this_host(monkeypatch: pytest.MonkeyPatch, *clusters: LocalCluster) -> None:
    monkeypatch.setattr(discovery, "local_clusters", lambda: list(clusters))


def test_auto_is_the_only_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    on_this_host(monkeypatch, LocalCluster(PUBLIC, None))
    assert resolve_auto() == PUBLIC


def test_without_a_visible_cluster_auto_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    on_this_host(monkeypatch)
    assert resolve_auto() == "auto"


def test_auto_among_several_clusters_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    on_this_host(monkeypatch, LocalCluster(PUBLIC, None), LocalCluster(PRIVATE, 77))
    with pytest.raises(ClusterError) as caught:
        resolve_auto()
    message = str(caught.value)
    assert f"2 Ray clusters run on this machine: {PUBLIC}, {PRIVATE} (private to process 77)" in (
        message
    )
    assert "RAY_ADDRESS" in message


def test_auto_is_not_another_process_private_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    on_this_host(monkeypatch, LocalCluster(PRIVATE, 77))
    with pytest.raises(ClusterError, match=f"{PRIVATE} .private to process 77. and ends with it"):
        resolve_auto()
