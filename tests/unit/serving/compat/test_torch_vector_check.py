"""Torch's check of the CPU is made once per machine, and skipped only if all has passed."""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from serving.compat import torch_vector_check
from serving.compat.torch_vector_check import (
    VARIABLE,
    adopt_vector_check,
    skip_vector_check,
)

COMPILER = """#!/bin/sh
echo called >> {log}
case "$*" in *{rejected}*) exit 1;; esac
exec g++ "$@"
"""


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is set before, nor left set."""
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the next checks print; a check takes its answer from here."""
    answers: list[str] = []
    monkeypatch.setattr(torch_vector_check, "_check", lambda folder: answers.pop(0))
    return answers


def test_a_passed_check_is_not_made_again(tmp_path: Path, checks: list[str]) -> None:
    checks.append("passed\n")
    skip_vector_check(tmp_path)
    assert os.environ.pop(VARIABLE) == "1"
    skip_vector_check(tmp_path)
    assert os.environ[VARIABLE] == "1"


def test_a_failed_check_is_left_to_torch_and_not_made_again(
    tmp_path: Path, checks: list[str]
) -> None:
    checks.append("failed\n")
    skip_vector_check(tmp_path)
    skip_vector_check(tmp_path)
    assert VARIABLE not in os.environ


def test_a_check_that_did_not_end_is_made_again(tmp_path: Path, checks: list[str]) -> None:
    checks += ["", "passed\n"]
    skip_vector_check(tmp_path)
    assert VARIABLE not in os.environ
    skip_vector_check(tmp_path)
    assert os.environ[VARIABLE] == "1"


def test_a_given_variable_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    skip_vector_check(tmp_path)
    assert os.environ[VARIABLE] == "0"
    assert not list(tmp_path.iterdir())


def test_another_compiler_is_checked_again(
    tmp_path: Path, checks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    checks += ["passed\n", "failed\n"]
    skip_vector_check(tmp_path)
    del os.environ[VARIABLE]
    monkeypatch.setenv("CXX", sys.executable)
    skip_vector_check(tmp_path)
    assert VARIABLE not in os.environ
    assert checks == []


def test_of_replicas_that_start_together_one_makes_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def check(folder: Path) -> str:
        made.append(1)
        time.sleep(0.2)  # The others arrive meanwhile.
        return "passed\n"

    monkeypatch.setattr(torch_vector_check, "_check", check)
    threads = [threading.Thread(target=skip_vector_check, args=(tmp_path,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


@pytest.mark.parametrize(("given", "applied"), [("1", True), ("0", None), ("", None)])
def test_a_process_that_read_the_variable_before_adopts_it(
    monkeypatch: pytest.MonkeyPatch, given: str, applied: bool | None
) -> None:
    cpp = SimpleNamespace(vec_isa_ok=None)
    monkeypatch.setitem(sys.modules, "torch._inductor.config", SimpleNamespace(cpp=cpp))
    monkeypatch.setenv(VARIABLE, given)
    adopt_vector_check()
    assert cpp.vec_isa_ok is applied


@pytest.mark.slow
def test_a_compiler_that_lacks_an_instruction_fails_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, log = tmp_path / "old-g++", tmp_path / "calls"
    compiler.write_text(COMPILER.format(log=log, rejected="-mavx2"))
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    skip_vector_check(tmp_path)
    assert log.exists(), "torch called it"
    assert VARIABLE not in os.environ
    (result,) = tmp_path.glob("vector-check-*")
    assert result.read_text() == "failed\n"
