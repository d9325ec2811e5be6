"""A process that has imported vLLM, from which a replica's other processes are forked.

vLLM starts the process of an engine and each of its workers in a new interpreter (``spawn``), which
imports vLLM again: about eight seconds of a core each. A replica therefore starts a server of
``multiprocessing.forkserver`` before it imports vLLM itself, so that both imports run at the same
time, and the server forks the engine's processes when they are needed. Their memory is shared with
the server's until they change it. The server ends with the processes that it forked.

A process gets its environment and priority from the process that starts it, as with ``spawn``. If
the server has ended, or was started with other variables than its loader needs, the process is
spawned.

This module imports the standard library only, so that the server starts at once.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from importlib.util import find_spec
from multiprocessing import forkserver, popen_forkserver, popen_spawn_posix
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, ClassVar

from serving.compat.torch_vector_check import adopt_vector_check
from serving.compat.vllm_processes import keep_fork_server, replace_process_context

PRELOAD = "serving.compat.vllm_preload"
CPU_MARK = "VLLM_CPU_OMP_THREADS_BIND"
"""A variable of the replicas whose engine computes on a CPU."""
LOADER = "LD_PRELOAD"
LOADER_PREFIXES = (LOADER, "OMP_", "GOMP_", "KMP_")
"""Variables that count when a program or its OpenMP is loaded, not later."""
PR_SET_PDEATHSIG = 1
logger = logging.getLogger(__name__)


def is_wanted() -> bool:
    """Return whether this replica's engine computes on a CPU; on a GPU this was never measured."""
    return CPU_MARK in os.environ


def start_fork_server(preload: str = PRELOAD) -> None:
    """Start the server, which imports the module ``preload``, and return at once."""
    if CPU_MARK in os.environ:
        os.environ[LOADER] = ":".join(dict.fromkeys([*preloaded_libraries(), *_loaded()]))
    EngineProcess.server_variables = loader_variables()
    forkserver.set_forkserver_preload([preload])
    forkserver.ensure_running()


def use_fork_server() -> None:
    """Have vLLM start the processes of an engine through the server. Imports vLLM."""
    replace_process_context(EngineContext())


def preloaded_libraries() -> list[str]:
    """Return the libraries that vLLM loads first into the processes of an engine on a CPU.

    They are an allocator of its own and torch's OpenMP, where the installed builds have them
    (``vllm.platforms.cpu``).
    """
    found = []
    for package, patterns in (
        ("vllm", ("libs/libtcmalloc_minimal*.so*", "libs/libtcmalloc.so*")),
        ("torch", ("../torch.libs/libgomp*.so*", "lib/libgomp*.so*")),
    ):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None and not _has_openmp(package):
            folder = Path(spec.origin).parent
            files = (file for pattern in patterns for file in folder.glob(pattern))
            found += [os.path.normpath(file) for file in files][:1]
    return found


def _has_openmp(package: str) -> bool:
    """Whether the user has chosen a library of OpenMP, which vLLM then uses."""
    own = os.environ.get(LOADER, "")
    return package == "torch" and any(name in own for name in ("libomp", "libgomp", "libiomp"))


def _loaded() -> list[str]:
    return [path for path in os.environ.get(LOADER, "").split(":") if path]


def loader_variables() -> dict[str, str]:
    """Return the variables of this process that count when a program is loaded."""
    return {name: os.environ[name] for name in os.environ if name.startswith(LOADER_PREFIXES)}


class EngineProcess(ForkServerProcess):
    """A process that has the environment and the priority of the process that starts it."""

    server_variables: ClassVar[dict[str, str]] = {}
    """The variables that counted when the server was loaded."""

    def start(self) -> None:
        """Fork the process from the server, or spawn it."""
        self._environment = dict(os.environ)
        self._niceness = os.nice(0)
        self._server_variables = self.server_variables
        super().start()

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        if process_obj.server_variables != loader_variables():
            logger.info("A process needs %s of its own; importing vLLM again.", LOADER_PREFIXES)
            return popen_spawn_posix.Popen(process_obj)
        try:
            return popen_forkserver.Popen(process_obj)
        except (OSError, EOFError) as error:
            logger.warning("The fork server does not answer (%r); importing vLLM again.", error)
        return popen_spawn_posix.Popen(process_obj)

    def run(self) -> None:
        """Take over the environment and the priority, then run the target."""
        if forkserver.get_inherited_fds() is not None:
            self._adopt()
        super().run()

    def _adopt(self) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        os.nice(max(0, self._niceness - os.nice(0)))
        _adopt_hub_token()
        adopt_vector_check()
        # Without the server its parent would take this process for dead.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        EngineProcess.server_variables = self._server_variables
        keep_fork_server()
        if "vllm" in sys.modules:
            use_fork_server()


def _adopt_hub_token() -> None:
    """Read the hub's token where the replica keeps it: the server imported the library before."""
    if path := os.environ.get("HF_TOKEN_PATH"):
        import huggingface_hub.constants as constants

        constants.HF_TOKEN_PATH = path


class EngineContext(ForkServerContext):
    """A context of ``multiprocessing`` whose processes are forked from the server."""

    Process = EngineProcess
