"""Stored calibrations, and the message before the simulator is compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numba
import pytest
from support.whatif import calibration

from workbench.errors import SettingError
from workbench.whatif import stored
from workbench.whatif._compiled import COMPILING, announce_compilation, compiled
from workbench.whatif.calibration import Calibration


def test_a_calibration_is_found_by_name_and_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "FOLDER", tmp_path)
    kept = calibration(step_s=0.25)
    file = kept.save(tmp_path / "a-card.json")
    assert stored.stored_calibrations() == ["a-card"]
    assert stored.load_calibration("a-card") == stored.load_calibration(file) == kept
    with pytest.raises(SettingError, match="or one of a-card, got 'another-card'"):
        stored.load_calibration("another-card")
    with pytest.raises(SettingError, match=r"gone\.json cannot be read: No such file"):
        stored.load_calibration("gone.json")


def test_every_stored_calibration_can_be_read() -> None:
    for name in stored.stored_calibrations():
        found = stored.load_calibration(name)
        assert isinstance(found, Calibration)
        assert found.hardware, name
        assert found.versions, name


def test_compilation_is_announced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def new() -> Any:
        def double(value: int) -> int:
            return 2 * value

        return compiled(double)

    first = new()
    announce_compilation(first)
    assert capsys.readouterr().err == COMPILING + "\n"
    assert first(2) == 4
    announce_compilation(first)
    assert capsys.readouterr().err == ""
    announce_compilation(new())
    assert capsys.readouterr().err == "", "the machine code is kept"
