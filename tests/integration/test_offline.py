"""A laptop without a network: a network namespace with only a loopback interface."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT
from support.scripts import load

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


def run_offline(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command without a network."""
    namespace = ["unshare", "--net", sys.executable, "-c", OFFLINE, *command]
    ran = subprocess.run(namespace, capture_output=True, text=True, **options)
    if "unshare failed" in ran.stderr:
        pytest.skip("a network namespace needs root")
    assert "NO NETWORK" in ran.stdout, ran.stderr
    return ran


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(600)
def test_notebook_00_runs_without_a_network(tmp_path: Path) -> None:
    options = ["--profile", "workshop", "--runs", str(tmp_path), "--run-id", "offline"]
    ran = run_offline(
        sys.executable,
        *("-m", "workbench", "run", "00", *options),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=580,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    assert (tmp_path / "offline" / "summary.json").exists()


@pytest.mark.slow
def test_pip_installs_from_a_wheelhouse_without_a_network(tmp_path: Path) -> None:
    wheels, target = tmp_path / "wheels", tmp_path / "site"
    small = ["--no-deps", "--quiet", "six==1.17.0"]
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "--wheel-dir", str(wheels), *small], check=True)
    install = load("install")
    saved = dict(os.environ)
    try:
        os.environ["WHEELHOUSE"] = str(wheels)
        install.use_wheelhouse()
        assert os.environ["PIP_NO_INDEX"] == "1"
        run_offline(*pip, "install", "--target", str(target), *small, timeout=120)
    finally:
        os.environ.clear()
        os.environ.update(saved)
    assert (target / "six.py").exists()


def test_a_folder_without_wheels_is_rejected_with_the_command_that_fills_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install = load("install")
    monkeypatch.setenv("WHEELHOUSE", str(tmp_path))
    with pytest.raises(install.SetupError, match=r"has no wheels.*make wheelhouse"):
        install.use_wheelhouse()
    monkeypatch.delenv("WHEELHOUSE")
    install.use_wheelhouse()
    assert "PIP_NO_INDEX" not in os.environ
