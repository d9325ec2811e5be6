"""How vLLM 0.29.0 starts the processes of an engine, and how CPython's fork server is found."""

from __future__ import annotations

from importlib import import_module
from multiprocessing import forkserver
from typing import Any

STARTERS = (
    "vllm.v1.engine.utils",
    "vllm.v1.engine.coordinator",
    "vllm.v1.executor.multiproc_executor",
)
"""The modules of vLLM that call ``vllm.utils.system_utils.get_mp_context()``."""


def replace_process_context(context: Any) -> None:
    """Have vLLM start processes in this context of ``multiprocessing``.

    ``get_mp_context()`` also sets variables for the new process, such as Ray's address, so it runs
    as before. It cannot return such a context itself: within an actor of Ray, and on a CPU, it
    always chooses ``spawn``.
    """
    from vllm.utils.system_utils import get_mp_context

    def chosen() -> Any:
        get_mp_context()
        return context

    for name in STARTERS:
        import_module(name).get_mp_context = chosen  # type: ignore[attr-defined]


def keep_fork_server() -> None:
    """Have a process that was forked from a server start its own processes through that server.

    ``multiprocessing.forkserver`` in Python 3.11 to 3.13 passes the server's address on, but its
    ``ensure_running()`` starts another server because the first is not a child of this process.
    """
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]
