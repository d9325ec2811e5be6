"""A kernel that runs one notebook after another, so that a service can stay between them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

from workbench.endpoints.services import KEEP_VARIABLE

if TYPE_CHECKING:
    from jupyter_client.manager import AsyncKernelManager

QUIET = ["--log-level=CRITICAL"]
"""Only this process talks to the kernel: its warning about encryption is noise."""
TIMEOUT_S = 120.0
_FORGET = "get_ipython().reset(new_session=True)"
_DELETE = """
import sys
if services := sys.modules.get("workbench.endpoints.services"):
    services.delete_left_services()
"""


class KeptKernel:
    """A context manager whose end deletes the services that notebooks left, and ends the kernel."""

    def __init__(self) -> None:
        self._manager: AsyncKernelManager | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def ready(self, cwd: Path) -> AsyncKernelManager:
        """Return the manager of a kernel without variables, started in `cwd` if none runs."""
        from jupyter_core.utils import run_sync

        if self._manager is not None and run_sync(self._manager.is_alive)():
            self._run(_FORGET)
            return self._manager
        from jupyter_client.manager import AsyncKernelManager

        self._manager = AsyncKernelManager(kernel_name="python3")
        environment = os.environ | {KEEP_VARIABLE: "1"}
        start = run_sync(self._manager.start_kernel)
        start(extra_arguments=QUIET, cwd=str(cwd), env=environment)
        return self._manager

    def end(self) -> None:
        """Delete the services that notebooks left, and end the kernel if one runs."""
        from jupyter_core.utils import run_sync

        manager, self._manager = self._manager, None
        if manager is None:
            return
        try:
            if run_sync(manager.is_alive)():
                self._run(_DELETE, manager)
        except (RuntimeError, TimeoutError):
            pass  # It died, or is busy: its end also ends the cluster that it started.
        finally:
            run_sync(manager.shutdown_kernel)()
            run_sync(manager.cleanup_resources)()

    def _run(self, code: str, manager: AsyncKernelManager | None = None) -> None:
        """Run code that has no output, and wait for its end."""
        from jupyter_client.blocking.client import BlockingKernelClient

        manager = manager or self._manager
        assert manager is not None
        client = BlockingKernelClient()
        client.load_connection_info(manager.get_connection_info())
        client.start_channels()
        try:
            client.wait_for_ready(timeout=TIMEOUT_S)
            client.execute_interactive(code, silent=True, store_history=False, timeout=TIMEOUT_S)
        finally:
            client.stop_channels()
