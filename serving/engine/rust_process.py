"""The process of vLLM's Rust front end in a replica, and the sockets between them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from serving.cluster.user_folder import user_folder
from serving.compat.vllm_rust import rust_arguments, rust_program
from serving.engine.hub_token import hub_token
from serving.spec.model import ModelSpec

READY_TIMEOUT_S = 60.0
"""Seconds from when the engine runs until the Rust front end must answer."""
ENGINE_TIMEOUT_S = 24 * 3600
"""Seconds that it waits for the engine, whose own limits are shorter."""
SOCKETS = 107 - len("/rust-abcd1234/http")
"""Bytes of a folder's path so that the sockets fit."""
BACKLOG = 4096
"""Connections that may wait to be accepted."""
POLL_S = 0.1
# PR_SET_PDEATHSIG: the kernel ends the process with its parent, in whichever way that ends. It is
# set in the new process, since a replica has threads and must not run code between fork and exec.
_STARTER = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL)\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])"
)
logger = logging.getLogger(__name__)


class RustProcess:
    """A running ``vllm-rs frontend``, reached through Unix sockets in a private folder.

    Start it in a thread that lives as long as the replica: the kernel ends it with that thread.

    Args:
        model: The model, whose ``env`` may name the program.

    Attributes:
        socket: The path of its HTTP socket.
        input_address: Where the engine core connects to, for requests.
        output_address: Where the engine core connects to, for outputs.

    Raises:
        MissingPackageError: There is no such program, or it has another version.
    """

    def __init__(self, model: ModelSpec) -> None:
        program = rust_program(model.env)
        self._folder = tempfile.TemporaryDirectory(prefix="rust-", dir=user_folder(SOCKETS))
        folder = Path(self._folder.name)
        self.socket = str(folder / "http")
        self.input_address, self.output_address = f"ipc://{folder}/in", f"ipc://{folder}/out"
        arguments = rust_arguments(
            model.path, model.model_id, model.max_model_len, ENGINE_TIMEOUT_S
        )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(self.socket)
            listener.listen(BACKLOG)
            command = self._command(program, listener.fileno(), arguments)
            self._process = subprocess.Popen(
                command,
                pass_fds=(listener.fileno(),),
                stdin=subprocess.DEVNULL,
                env=_environment(),
            )

    def _command(self, program: Path, listener: int, arguments: dict[str, Any]) -> list[str]:
        starter = [sys.executable, "-I", "-S", "-c", _STARTER, str(os.getpid())]
        options = {
            "--listen-fd": str(listener),
            "--input-address": self.input_address,
            "--output-address": self.output_address,
            "--args-json": json.dumps(arguments),
        }
        flat = [part for option in options.items() for part in option]
        return [*starter, str(program), "frontend", *flat]

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    async def wait_until_ready(self, is_ready: Callable[[], Awaitable[bool]]) -> None:
        """Wait until it answers.

        Args:
            is_ready: Awaited repeatedly; returns whether it answers.

        Raises:
            RuntimeError: It has ended, or does not answer within ``READY_TIMEOUT_S``.
        """
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while self.status is None and not await is_ready():
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise RuntimeError(
                f"vLLM's Rust front end does not answer after {READY_TIMEOUT_S:g} s. Leave "
                "model.frontend out to use the one in Python."
            ) from None
        self.check()

    def check(self) -> None:
        """Raise ``RuntimeError`` if it has ended."""
        if self.status is not None:
            raise RuntimeError(
                f"vLLM's Rust front end ended with status {self.status}. The replica's log has "
                "its messages."
            )

    def end(self) -> None:
        """End it and remove its sockets."""
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


def _environment() -> dict[str, str]:
    """Return the environment of the program, which reads the hub's token from a variable only."""
    token = hub_token()
    return {"RUST_LOG": "warn"} | os.environ | ({"HF_TOKEN": token} if token else {})
