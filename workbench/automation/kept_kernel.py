"""A kernel that runs one notebook after another, so that a service can stay between them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

from serving.errors import WorkbenchError
from workbench.automation.notebooks import QUIET
from workbench.endpoints.services import KEEP_VARIABLE

TIMEOUT_S = 120.0
START_ATTEMPTS = 3
"""A kernel ends at once if another process has taken one of the ports that were free before."""
_FORGET = "get_ipython().reset(new_session=True)"
_DELETE = """
import sys
if services := sys.modules.get("workbench.endpoints.services"):
    services.delete_left_services()
"""


class KernelStartError(WorkbenchError):
    """No kernel started."""


class _Manager(AsyncKernelManager):
    """A manager with one client at a time.

    nbclient does not close the client of a kernel that it does not own. All have the same identity
    for the kernel, and each has five sockets.
    """

    latest: AsyncKernelClient | None = None

    def client(self, **kwargs: Any) -> AsyncKernelClient:  # type: ignore[override]
        """Return a new client, after closing the one before."""
        self.close_client()
        self.latest = super().client(**kwargs)
        return self.latest

    def close_client(self) -> None:
        """Close the latest client, if there is one."""
        if self.latest is not None:
            self.latest.stop_channels()
            self.latest = None


class KeptKernel:
    """A context manager whose end deletes the services that notebooks left, and ends the kernel."""

    def __init__(self) -> None:
        self._manager: _Manager | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def ready(self, cwd: Path) -> AsyncKernelManager:
        """Return the manager of a kernel without variables, started in `cwd` if none runs.

        Raises:
            KernelStartError: None starts.
        """
        from jupyter_core.utils import run_sync

        if self._manager is not None and run_sync(self._manager.is_alive)():
            self._run(_FORGET)
            return self._manager
        for attempt in range(1, START_ATTEMPTS + 1):
            self._manager = _Manager(kernel_name="python3")
            environment = os.environ | {KEEP_VARIABLE: "1"}
            start = run_sync(self._manager.start_kernel)
            start(extra_arguments=QUIET, cwd=str(cwd), env=environment)
            client = self._manager.client()
            client.start_channels()
            try:
                run_sync(client.wait_for_ready)(timeout=TIMEOUT_S)
                break
            except RuntimeError as error:
                self.end()
                if attempt == START_ATTEMPTS:
                    raise KernelStartError(f"no kernel has started: {error}") from error
        assert self._manager is not None
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
            manager.close_client()
            run_sync(manager.shutdown_kernel)()
            run_sync(manager.cleanup_resources)()

    def _run(self, code: str, manager: _Manager | None = None) -> None:
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
