"""A notebook as a page without code, served by Voilà, which is an optional package.

Voilà may be installed in an environment of its own: the notebook runs in this one, with the widgets
that are installed here. Each visit starts a kernel, and with it what the notebook deploys.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import webbrowser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving.cluster.ports import check_port, free_port
from serving.errors import WorkbenchError
from workbench.automation import stop_at_error
from workbench.automation.notebooks import QUIET, check_parameters
from workbench.errors import MissingPackageError

HOST = "127.0.0.1"
TEMPLATE, TEMPLATE_NAME = Path(__file__).parent / "page", "workbench"
ERRORS = [
    "--InteractiveShell.xmode=Minimal",
    f"--IPKernelApp.extra_extensions={stop_at_error.__name__}",
]
"""An error is shown as one line without code, and ends the notebook."""
START_TIMEOUT_S, END_TIMEOUT_S = 60.0, 30.0
POLL_S = 0.1


class PageError(WorkbenchError):
    """Voilà does not serve the page."""


def serve_page(
    path: Path, parameters: Mapping[str, Any], *, port: int = 0, browser: bool = True
) -> None:
    """Serve a notebook as a page on this machine, until Ctrl-C or SIGTERM.

    Args:
        path: The notebook.
        parameters: Values that replace the defaults of its parameters.
        port: The port; 0 selects a free one.
        browser: Whether to open a browser.

    Raises:
        MissingPackageError: Voilà is not installed.
        PageError: Voilà has ended, or does not answer.
        PortTakenError: The port has a listener.
        SettingError: A parameter is invalid.
    """
    program = find_voila()
    check_parameters(path, parameters)
    check_port(HOST, port)
    port, token = port or free_port(HOST), secrets.token_urlsafe(24)
    with _sigterm_interrupts(), tempfile.TemporaryDirectory(prefix="workbench-app-") as folder:
        page = write_page(path, parameters, Path(folder))
        variables = {"JUPYTER_PATH": jupyter_path(Path(folder)), "JUPYTER_TOKEN": token}
        process = subprocess.Popen(command(program, page, port), env=os.environ | variables)
        try:
            _wait_for_port(process, port)
            _announce(path, f"http://{HOST}:{port}/?token={token}", browser=browser)
            status = process.wait()
        except KeyboardInterrupt:
            return
        finally:
            _end(process)
    raise PageError(f"Voilà has ended with status {status}; its messages are above.")


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, so that Voilà and its kernels end too."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def find_voila() -> str:
    """Return the path of Voilà's program, from this environment or else from PATH.

    Raises:
        MissingPackageError: There is none.
    """
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which("voila", path=folders)
    if program is None:
        raise MissingPackageError(
            "Voilà is not installed. Install it: pip install voila, or in an environment of its "
            "own whose bin folder is on the PATH: pipx install voila"
        )
    return program


def write_page(path: Path, parameters: Mapping[str, Any], folder: Path) -> Path:
    """Write the notebook with its parameters, a kernel and a template, and return the notebook.

    Jupyter starts a kernel's `python` in the environment of the server, so the kernel names the
    path of this Python. It runs in the notebook's own folder.
    """
    import papermill

    python = ["env", f"--chdir={path.parent}", sys.executable, "-m", "ipykernel_launcher"]
    kernel = {
        "argv": [*python, "-f", "{connection_file}", *QUIET, *ERRORS],
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
    }
    kernels = folder / "jupyter" / "kernels" / "python3"
    kernels.mkdir(parents=True)
    (kernels / "kernel.json").write_text(json.dumps(kernel))
    shutil.copytree(TEMPLATE, folder / "jupyter" / "nbconvert" / "templates" / TEMPLATE_NAME)
    page = folder / "page" / path.name
    page.parent.mkdir()
    papermill.execute_notebook(
        path, page, dict(parameters), prepare_only=True, progress_bar=False, log_output=False
    )
    return page


def jupyter_path(folder: Path) -> str:
    """Return Jupyter's search path, with the kernel and the template first.

    This environment is not on it: its templates would take the place of Voilà's.
    """
    known = os.environ.get("JUPYTER_PATH")
    return os.pathsep.join([str(folder / "jupyter"), *([known] if known else [])])


def command(program: str, page: Path, port: int) -> list[str]:
    """Return the command that serves the page on this machine, for those with the token.

    With progressive rendering, output appears and widgets work while a later cell runs. Errors
    are shown with their reason.
    """
    extensions = Path(sys.prefix) / "share" / "jupyter" / "labextensions"
    settings = {
        "Voila.ip": HOST,
        "Voila.port": port,
        "Voila.port_retries": 0,
        "Voila.auto_token": True,
        "Voila.open_browser": False,  # it would open the page without the token
        "Voila.log_level": "ERROR",
        "VoilaConfiguration.template": TEMPLATE_NAME,
        "VoilaConfiguration.progressive_rendering": True,
        "VoilaConfiguration.show_tracebacks": True,
        "VoilaConfiguration.extra_labextensions_path": extensions,
    }
    return [program, str(page), *(f"--{name}={value}" for name, value in settings.items())]


def _wait_for_port(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PageError(
                f"Voilà has ended with status {process.returncode}; its messages are above."
            )
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(POLL_S)
    raise PageError(f"Voilà has not started within {START_TIMEOUT_S:.0f} s; try again.")


def _announce(path: Path, address: str, *, browser: bool) -> None:
    print(f"notebook    {path.stem}\npage        {address}\nPress Ctrl-C to end it.", flush=True)
    if browser:
        webbrowser.open(address)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End Voilà and its kernels."""
    process.terminate()
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
