"""The processes of an engine are forked from a server that has imported vLLM, or spawned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.installed import folder

from serving.compat import vllm_processes
from serving.engine import fork_server

SUPPORT = Path(__file__).parents[3] / "support"
ROOT = SUPPORT.parents[1]


def program(case: str, **variables: str) -> tuple[int, list[dict[str, Any]]]:
    """Run a case of `fork_program`; return the server's process and what the processes sent."""
    path = os.pathsep.join(map(str, (SUPPORT, ROOT)))
    result = subprocess.run(
        [sys.executable, str(SUPPORT / "fork_program.py"), case],
        env=os.environ | {"PYTHONPATH": path} | variables,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr
    reply = json.loads(result.stdout)
    return reply["server"], reply["replies"]


def test_a_process_and_its_own_are_forked_from_the_one_server() -> None:
    server, replies = program("nested")
    assert len(replies) == 2
    for reply in replies:
        assert reply["preloaded_by"] == server
        assert reply["parent"] == server


def test_a_process_has_the_environment_and_the_priority_of_the_one_that_starts_it() -> None:
    server, (reply,) = program("changed")
    assert reply["preloaded_by"] == server
    assert (reply["value"], reply["other"]) == ("late", None)
    assert reply["niceness"] == min(19, os.nice(0) + 3)


def test_a_process_whose_loader_needs_other_variables_is_spawned() -> None:
    server, (reply,) = program("other_libraries")
    assert reply["preloaded_by"] is None
    assert reply["parent"] != server
    assert reply["value"] == "early"


def test_a_process_is_spawned_if_the_server_has_died() -> None:
    server, (reply,) = program("dead_server")
    assert reply["preloaded_by"] is None
    assert reply["parent"] != server


def test_a_forked_process_ends_with_the_server() -> None:
    _, (reply,) = program("killed_later")
    assert reply["ended"]
    assert reply["known"]
    assert not Path(f"/proc/{reply['pid']}").exists() or _is_zombie(reply["pid"])


def _is_zombie(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "Z"


def _packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the installed packages by folders like those of vLLM's and torch's builds."""
    for file in ("torch/lib/libgomp-1.so.1", "vllm/libs/libtcmalloc_minimal.so.4"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    monkeypatch.setattr(
        fork_server,
        "find_spec",
        lambda name: SimpleNamespace(origin=str(tmp_path / name / "__init__.py")),
    )


def test_the_libraries_are_those_of_the_installed_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _packages(tmp_path, monkeypatch)
    monkeypatch.setenv("LD_PRELOAD", "")
    assert fork_server.preloaded_libraries() == [
        str(tmp_path / "vllm/libs/libtcmalloc_minimal.so.4"),
        str(tmp_path / "torch/lib/libgomp-1.so.1"),
    ]


def test_the_users_own_openmp_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _packages(tmp_path, monkeypatch)
    monkeypatch.setenv("LD_PRELOAD", "/opt/libiomp5.so")
    assert fork_server.preloaded_libraries() == [
        str(tmp_path / "vllm/libs/libtcmalloc_minimal.so.4")
    ]


def test_vllm_starts_processes_in_the_context_of_these_modules_alone() -> None:
    package = folder("vllm")
    found = {
        ".".join(["vllm", *path.relative_to(package).with_suffix("").parts])
        for path in package.rglob("*.py")
        if "get_mp_context()" in path.read_text(encoding="utf-8")
    }
    assert found == {*vllm_processes.STARTERS, "vllm.utils.system_utils"}
