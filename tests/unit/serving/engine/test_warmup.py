"""The folder of the code that torch compiles for an engine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.compat.torch_vector_check import FOLDER_VARIABLE, VARIABLE
from serving.engine import warmup
from serving.engine.warmup import choose_folder


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Chooses the folder of a model, in a home of its own."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(warmup, "skip_vector_check", lambda root: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv(FOLDER_VARIABLE, "")
    monkeypatch.setenv(VARIABLE, "")

    def chosen(model: str) -> Path:
        choose_folder(model)
        return Path(os.environ[FOLDER_VARIABLE])

    return chosen


def test_a_model_has_one_folder_in_the_home(choose: Callable[[str], Path], tmp_path: Path) -> None:
    folder = choose("a")
    assert folder.is_dir()
    assert folder.parent == tmp_path / "home" / ".cache" / "llm-workbench" / "compiled"
    assert choose("a") == folder
    assert choose("b") != folder


def test_code_compiled_with_the_check_has_another_folder(
    choose: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = choose("a")
    monkeypatch.setenv(VARIABLE, "1")
    assert choose("a") != folder


def test_without_a_folder_in_the_home_it_is_temporary(
    choose: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "home").write_text("a file")
    folder = choose("a")
    assert folder.is_dir()
    assert folder.parent.name.startswith("llm-workbench-compiled-")


def test_a_folder_that_cannot_be_written_is_replaced(
    choose: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def skip(root: Path) -> None:
        if root.name == "compiled":
            raise PermissionError(root)

    monkeypatch.setattr(warmup, "skip_vector_check", skip)
    assert choose("a").parent.name.startswith("llm-workbench-compiled-")
