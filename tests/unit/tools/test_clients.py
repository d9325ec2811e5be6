"""scripts/clients.py installs what is pinned, once, and says why a client is missing."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
from support import scripts

TORCH_INDEX = scripts.load("torch_index")

FAKE_UV = """#!/bin/sh
echo "$@" >> {log}
case "$*" in *broken*) echo "error: no such package" >&2; exit 2;; esac
if [ "$1" = venv ]; then for last; do :; done; mkdir -p "$last"; fi
"""


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = scripts.load("clients")
    pins, uv = tmp_path / "pins", tmp_path / "uv"
    pins.mkdir()
    uv.write_text(FAKE_UV.format(log=tmp_path / "log"))
    uv.chmod(0o755)
    for name in ("one", "broken"):
        (pins / f"{name}.in").write_text(name)
        (pins / f"{name}.txt").write_text(f"{name}==1\n")
    monkeypatch.setattr(module, "PINS", pins)
    monkeypatch.setattr(module, "ENVIRONMENTS", tmp_path / "environments")
    monkeypatch.setattr(module, "UV", uv)
    return module


def commands(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


def test_a_client_is_installed_once_and_again_when_its_pins_change(
    clients: ModuleType, tmp_path: Path
) -> None:
    clients.main()
    installed = [line for line in commands(tmp_path) if "one.txt" in line]
    assert len(installed) == 1
    assert "--no-deps" in installed[0]
    assert clients.skip_reason("one") is None
    clients.main()
    assert [line for line in commands(tmp_path) if "one.txt" in line] == installed
    (clients.PINS / "one.txt").write_text("one==2\n")
    assert "one.txt is not installed" in clients.skip_reason("one")
    clients.main()
    assert len([line for line in commands(tmp_path) if "one.txt" in line]) == 2


def test_a_failed_installation_is_the_reason_to_skip(
    clients: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    clients.main()
    printed = capsys.readouterr().out
    assert "error: no such package" in printed
    assert "not installed: broken; their tests are skipped" in printed
    reason = clients.skip_reason("broken")
    assert "broken.txt" in reason
    assert "error: no such package" in reason


def test_every_client_is_pinned() -> None:
    module = scripts.load("clients")
    pin = re.compile(r"\S+==\S+( ; [^\\]+)? \\\n +--hash=sha256:[0-9a-f]{64}\b")
    assert module.names()
    for name in module.names():
        entries = TORCH_INDEX.read_entries(module.PINS / f"{name}.txt")
        assert entries
        assert all(pin.match(entry) for entry in entries)
        wanted = [line for line in (module.PINS / f"{name}.in").read_text().splitlines() if line]
        packages = {entry.partition("==")[0] for entry in entries}
        assert {line for line in wanted if not line.startswith("#")} <= packages
