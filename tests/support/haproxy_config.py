"""The configuration that the installed Ray Serve writes for HAProxy."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def render(
    folder: Path,
    port: int,
    servers: dict[str, int] | None = None,
    *,
    ports: tuple[int, int] = (0, 0),
    routers: bool = False,
    routes_received: bool = False,
    **fields: Any,
) -> Path:
    """Write the configuration of a proxy and return its path.

    Args:
        folder: The folder of the proxy's files.
        port: The port of the endpoint.
        servers: The ports of the replicas of one application, by name; None for no application.
        ports: The ports of HAProxy's metrics and statistics.
        routers: Whether the application has a request router, as on the direct path.
        routes_received: Whether applications have existed.
        fields: Other fields of ``HAProxyConfig``.
    """
    from ray.serve._private.haproxy import (
        BackendConfig,
        HAProxyApi,
        HAProxyConfig,
        ServerConfig,
    )
    from ray.serve.config import HTTPOptions

    path = folder / "haproxy.cfg"
    config = HAProxyConfig(
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "server-state"),
        metrics_socket_path=str(folder / "metrics.sock"),
        metrics_port=ports[0],
        stats_port=ports[1],
        http_options=HTTPOptions(host="0.0.0.0", port=port),
        is_head=True,
        has_received_routes=routes_received,
        **fields,
    )
    api = HAProxyApi(config, config_file_path=str(path))
    if servers is not None:
        replicas = [
            ServerConfig(name=name, host="127.0.0.1", port=at, replica_id=name)
            for name, at in servers.items()
        ]
        backend = BackendConfig(
            name="http-llm",
            path_prefix="/",
            servers=replicas,
            ingress_request_router_servers=replicas[:1] if routers else [],
            app_name="llm",
            ingress_deployment_name="llm",
        )
        api.set_backend_configs({backend.name: backend})
    api._generate_config_file_internal()
    return path
