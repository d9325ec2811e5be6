"""A laptop without a network: a namespace with nothing but its own loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT
from support.scripts import load

# Bring loopback up (SIOCSIFFLAGS with IFF_UP), show that there is no way out, then run the rest.
ALONE = """
import fcntl, os, socket, struct, sys
with socket.socket() as probe:
    fcntl.ioctl(probe, 0x8914, struct.pack("16sh", b"lo", 1))
try:
    socket.create_connection(("192.0.2.1", 80), 5)
except OSError as problem:
    print("NO WAY OUT", problem, flush=True)
else:
    sys.exit("there is a network")
os.execv(sys.argv[1], sys.argv[1:])
"""


def alone(*command: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command where the kernel has no way out."""
    inside = ["unshare", "--net", sys.executable, "-c", ALONE, *command]
    done = subprocess.run(inside, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if "unshare failed" in done.stderr:
        pytest.skip("a network namespace needs root")
    assert "NO WAY OUT" in done.stdout, done.stderr
    return done  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.engine
@pytest.mark.timeout(600)
def test_notebook_00_runs_without_a_network(tmp_path: Path) -> None:
    options = ["--profile", "workshop", "--runs", str(tmp_path), "--run-id", "alone"]
    done = alone(
        sys.executable,
        *("-m", "workbench", "run", "00", *options),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=580,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "alone" / "summary.json").exists()


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
        alone(*pip, "install", "--target", str(target), *small, timeout=120)
    finally:
        os.environ.clear()
        os.environ.update(saved)
    assert (target / "six.py").exists()


def test_a_folder_without_wheels_is_refused_with_the_command_that_fills_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install = load("install")
    monkeypatch.setenv("WHEELHOUSE", str(tmp_path))
    with pytest.raises(install.SetupError, match=r"has no wheels.*make wheelhouse"):
        install.use_wheelhouse()
    monkeypatch.delenv("WHEELHOUSE")
    install.use_wheelhouse()
    assert "PIP_NO_INDEX" not in os.environ
