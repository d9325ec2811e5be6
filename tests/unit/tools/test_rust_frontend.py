"""The program that is taken out of vLLM's wheel. The wheel and the index are local."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.paths import ROOT

CONTENT = b"#!/bin/sh\necho vllm-rs 0.29.0\n"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A folder with a wheel of vLLM for this machine."""
    folder = tmp_path / "index"
    folder.mkdir()
    name = f"vllm-0.29.0-cp38-abi3-manylinux_2_28_{platform.machine()}.whl"
    with zipfile.ZipFile(folder / name, "w") as wheel:
        wheel.writestr("vllm/vllm-rs", CONTENT)
        wheel.writestr(
            "vllm-0.29.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: vllm\nVersion: 0.29.0\n"
        )
        wheel.writestr("vllm-0.29.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        wheel.writestr("vllm-0.29.0.dist-info/RECORD", "")
    return folder


def run(home: Path, index: Path) -> subprocess.CompletedProcess[str]:
    own = {"HOME": str(home), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
    script = [sys.executable, str(ROOT / "scripts" / "rust_frontend.py")]
    variables = os.environ | own | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(script, env=variables, text=True, capture_output=True)


def test_the_program_is_found_where_it_was_put(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.compat.vllm_rust import rust_program

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("VLLM_RUST_FRONTEND_PATH", raising=False)
    done = run(tmp_path, index)
    assert done.returncode == 0, done.stderr
    program = rust_program()
    assert done.stdout.strip() == str(program)
    assert program.is_relative_to(tmp_path)
    assert program.read_bytes() == CONTENT


def test_it_is_fetched_once(tmp_path: Path, index: Path) -> None:
    assert run(tmp_path, index).returncode == 0
    for wheel in index.iterdir():
        wheel.unlink()
    assert run(tmp_path, index).returncode == 0


def test_without_a_wheel_nothing_is_left_behind(tmp_path: Path, index: Path) -> None:
    for wheel in index.iterdir():
        wheel.unlink()
    assert run(tmp_path, index).returncode != 0
    assert not (tmp_path / ".cache" / "llm-workbench").exists()
