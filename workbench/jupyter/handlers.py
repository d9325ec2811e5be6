"""Routes of the Jupyter server for the JupyterLab extension.

==========  ==================================  ==============================================
``GET``     ``workbench/services``              the services of this user
``DELETE``  ``workbench/services/PROCESS/NAME``  stop a service
``GET``     ``workbench/notebooks``             the workbench's notebooks, for the launcher
==========  ==================================  ==============================================

They need the server's authentication, and a change needs its XSRF token, like the server's own.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado import web

from workbench.endpoints.announce import socket_folder
from workbench.errors import EndpointGoneError, WorkbenchError
from workbench.jupyter.notebooks import find_notebooks
from workbench.jupyter.processes import services_of, stop_service

MODULE = "workbench.jupyter"


class _Handler(APIHandler):
    auth_resource = "workbench"

    def initialize(self, folder: Path | None) -> None:
        """Keep the folder of the sockets; None if there is none."""
        self.folder = folder


class ServicesHandler(_Handler):
    """The services of this user."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Answer with the services that this user's processes know."""
        services = [] if self.folder is None else await services_of(self.folder)
        self.finish(json.dumps({"services": services}))


class ServiceHandler(_Handler):
    """One service."""

    @web.authenticated
    @authorized
    async def delete(self, process: str, name: str) -> None:
        """Stop the service, and answer once it has stopped."""
        if self.folder is None:
            raise web.HTTPError(404, "this server has no folder of services")
        try:
            await stop_service(self.folder, process, name)
        except EndpointGoneError as error:
            raise web.HTTPError(404, str(error), reason="No such service") from None
        except WorkbenchError as error:
            raise web.HTTPError(502, str(error), reason="The service did not stop") from None
        self.set_status(204)
        self.finish()


class NotebooksHandler(_Handler):
    """The workbench's notebooks."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Answer with the notebooks below the server's folder."""
        root = Path(self.settings["server_root_dir"]).expanduser()
        found = await asyncio.to_thread(find_notebooks, root)
        self.finish(json.dumps({"notebooks": found}))


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": MODULE}]


def _load_jupyter_server_extension(server: Any) -> None:
    """Add the routes to a Jupyter server."""
    try:
        folder: Path | None = socket_folder()
    except (WorkbenchError, OSError) as error:
        server.log.warning("%s: no services are listed: %s", MODULE, error)
        folder = None
    base, options = server.web_app.settings["base_url"], {"folder": folder}
    routes = {
        "services": ServicesHandler,
        r"services/(\d+)/([a-z0-9-]+)": ServiceHandler,
        "notebooks": NotebooksHandler,
    }
    server.web_app.add_handlers(
        ".*$",
        [
            (url_path_join(base, "workbench", path), handler, options)
            for path, handler in routes.items()
        ],
    )
