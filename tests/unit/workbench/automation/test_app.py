"""Notebooks as pages: the command, the kernel and the parameters, with a scripted Voilà."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from support.paths import NOTEBOOKS

from workbench.__main__ import main
from workbench.automation import app
from workbench.automation.app import find_voila
from workbench.automation.stop_at_error import load_ipython_extension
from workbench.errors import MissingPackageError

# It writes what it was started with, listens until someone connects, and ends with status 3.
FAKE_VOILA = """#!{python}
import json, os, pathlib, socket, sys
page = pathlib.Path(sys.argv[1])
options = dict(option.removeprefix("--").split("=", 1) for option in sys.argv[2:])
jupyter = pathlib.Path(os.environ["JUPYTER_PATH"].split(os.pathsep)[0])
facts = {{
    "options": options,
    "command": " ".join(sys.argv),
    "token": os.environ["JUPYTER_TOKEN"],
    "jupyter_path": os.environ["JUPYTER_PATH"],
    "kernel": json.loads((jupyter / "kernels/python3/kernel.json").read_text()),
    "template": (jupyter / "nbconvert/templates/workbench/index.html.j2").read_text(),
    "mode": page.parents[1].stat().st_mode,
    "sources": ["".join(cell["source"]) for cell in json.loads(page.read_text())["cells"]],
}}
pathlib.Path({out!r}).write_text(json.dumps(facts))
server = socket.create_server(("127.0.0.1", int(options["Voila.port"])))
server.accept()
sys.exit(3)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a scripted Voilà writes."""
    out, program = tmp_path / "facts.json", tmp_path / "bin" / "voila"
    program.parent.mkdir()
    program.write_text(FAKE_VOILA.format(python=sys.executable, out=str(out)))
    program.chmod(0o755)
    monkeypatch.setattr(app, "find_voila", lambda: str(program))
    return out


def served(fake: Path, *arguments: str) -> dict[str, Any]:
    """Run the command, and return what the scripted Voilà found."""
    assert main(["app", "02", *arguments]) == 1
    return dict(json.loads(fake.read_text()))


def test_the_page_is_for_this_machine_and_this_token_only(
    fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = served(fake, "--no-browser")
    options, token = facts["options"], facts["token"]
    assert options["Voila.ip"] == "127.0.0.1"
    assert options["Voila.auto_token"] == "True", "without it Voilà asks for no token"
    assert len(token) >= 32
    assert token not in facts["command"], "every user of the machine can read it"
    assert stat.S_IMODE(facts["mode"]) == 0o700
    printed = capsys.readouterr()
    assert f"page        http://127.0.0.1:{options['Voila.port']}/?token={token}\n" in printed.out
    assert printed.err.splitlines() == ["Voilà has ended with status 3; its messages are above."]


def test_the_browser_opens_the_address_with_the_token(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    facts = served(fake)
    assert opened == [f"http://127.0.0.1:{facts['options']['Voila.port']}/?token={facts['token']}"]
    opened.clear()
    served(fake, "--no-browser")
    assert opened == []


def test_the_notebook_runs_here_with_its_parameters(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_PATH", "/opt/jupyter")
    facts = served(fake, "--no-browser", "-p", "peak_rate", "2.5")
    arguments = facts["kernel"]["argv"]
    assert arguments[:3] == ["env", f"--chdir={NOTEBOOKS}", sys.executable]
    assert any("peak_rate = 2.5" in source for source in facts["sources"])
    first, *rest = facts["jupyter_path"].split(os.pathsep)
    assert rest == ["/opt/jupyter"]
    assert not Path(first).exists(), "removed at the end"
    assert "://" not in facts["template"]


def test_what_cannot_be_served_is_one_sentence(
    fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["app", "02", "--port", port]) == 1
    assert f"port = {port} on host = '127.0.0.1' is not available" in capsys.readouterr().err
    assert main(["app", "99"]) == 2
    assert "there is no such file" in capsys.readouterr().err
    assert main(["app", "02", "-p", "peek_rate", "2.5"]) == 2
    assert "did you mean peak_rate?" in capsys.readouterr().err
    assert not fake.exists()


def test_without_voila_the_message_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPackageError, match="pip install voila"):
        find_voila()
    program = tmp_path / "voila"
    program.touch(mode=0o755)
    assert find_voila() == str(program)


def test_sigterm_is_handled_as_before_at_the_end(fake: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    served(fake, "--no-browser")
    assert signal.getsignal(signal.SIGTERM) is before


def test_cells_after_an_error_do_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    shell = InteractiveShell()
    load_ipython_extension(shell)
    cells = ["print('one')", "1 / 0", "print('two')", "undefined"]
    results = [shell.run_cell(cell, store_history=False) for cell in cells]
    assert [result.success for result in results] == [True, False, True, True]
    printed = capsys.readouterr().out
    assert "one" in printed
    assert "two" not in printed
