"""Environment variables that Ray, Ray Serve and vLLM read, most of them once, when imported.

Checked against Ray 2.60.0 (``ray.serve._private.constants``, ``ray.llm._internal.serve.constants``,
``ray._private.accelerators.accelerator``) and vLLM 0.29.0 (``vllm.envs``). A variable that a new
version no longer reads is ignored silently, so a test looks for each name in the installed source.
This module imports the standard library only.
"""

from __future__ import annotations

from pathlib import Path

HA_PROXY = "RAY_SERVE_ENABLE_HA_PROXY"
FORWARD_BODY = "RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY"
HAPROXY_PROGRAM = "RAY_SERVE_HAPROXY_BINARY_PATH"
"""The program that Ray Serve runs as HAProxy (``serving.proxy``)."""

SERVE_FLAGS = {HA_PROXY: "1"}
"""For direct streaming: HAProxy passes each request on to the replica's own HTTP server."""

FORWARD_BODY_FLAGS = {
    FORWARD_BODY: "1",
    # HAProxy buffers a request of up to this size in memory. It hides the prompt of a larger one.
    "RAY_SERVE_HAPROXY_INGRESS_REQUEST_ROUTER_BUFSIZE": str(2**20),
}
"""For prefix-aware routing on the direct path. It costs a second copy of each request body."""

KV_AWARE_ENV = {"PYTHONHASHSEED": "0", "VLLM_USE_SIMPLE_KV_OFFLOAD": "0"}
"""For KV-aware routing: the same tokens must have the same hash in every replica and in the router
(``ray.llm._internal.serve.routing_policies.kv_aware.vllm.kv_events``)."""

SERVE_TUNING = {
    # A dead proxy is replaced after three missed checks: 6 s instead of 30 s.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
    # On a busy machine a starting proxy is not ready within 5 s, and Serve would kill it.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    # A client that neither sends nor reads for this long is disconnected. Waiting for an answer
    # does not count.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    # A reload lets the old process finish its streams. Longer than any max_seconds.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(86_400 + 60),
    # Clients of an old process may reach a replica's port until then. By default as long as the
    # value above, in which a service that scales often would run out of ports. This is the default
    # of max_seconds, and the time that an unused connection stays open (90 s), with a margin.
    "RAY_SERVE_PORT_QUARANTINE_S": "750",
    # A replica that is stopped may finish its requests; one that hangs never would.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    "RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}
"""For every process of Ray Serve."""

LOCAL_SERVE = {"RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25"}
"""For a cluster on this machine: Serve's controller shares its cores with the engines.

By default it runs its loop ten times per second, also without requests."""

SINGLE_LOOP = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
"""For replicas on a GPU: the engine's client runs on the event loop that serves HTTP.

By default it runs on a loop of its own, and each chunk passes through a queue between the two."""

LOGGING = {"log_level": "WARNING", "enable_access_log": False}
"""Fields of ``ray.serve.schema.LoggingConfig`` for every process of Ray Serve.

An access log costs a line per request. At a level below ``WARNING`` Serve also formats the lines
that ``enable_access_log`` drops."""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
"""Turns usage reports off, and Ray's warning about hidden GPUs."""

METRICS_ENV = {"RAY_metrics_report_interval_ms": "1000"}
"""For actors whose metrics are sampled. Those of all others are exported at Ray's own interval of
10 s."""


def haproxy_files(folder: Path) -> dict[str, str]:
    """Return the variables that keep the files of a cluster's HAProxy in ``folder``.

    By default these files are the same for every cluster of a host.
    """
    names = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "SERVER_STATE_BASE": "",
        "SERVER_STATE_FILE": "server-state",
        "METRICS_SOCKET_PATH": "metrics.sock",
    }
    return {f"RAY_SERVE_HAPROXY_{key}": str(folder / name) for key, name in names.items()}


def serve_ports(
    proxies: int, replicas_http: tuple[int, int], replicas_grpc: tuple[int, int]
) -> dict[str, str]:
    """Return the variables that choose the ports of Ray Serve.

    Args:
        proxies: The first of four consecutive ports for the fallback proxy (HTTP, gRPC) and for
            HAProxy (metrics, statistics).
        replicas_http: The first and last HTTP port of the replicas.
        replicas_grpc: The first and last gRPC port of the replicas.
    """
    ports = {
        "FALLBACK_PROXY_HTTP": proxies,
        "FALLBACK_PROXY_GRPC": proxies + 1,
        "HAPROXY_METRICS": proxies + 2,
        "HAPROXY_STATS": proxies + 3,
        "DIRECT_INGRESS_MIN_HTTP": replicas_http[0],
        "DIRECT_INGRESS_MAX_HTTP": replicas_http[1],
        "DIRECT_INGRESS_MIN_GRPC": replicas_grpc[0],
        "DIRECT_INGRESS_MAX_GRPC": replicas_grpc[1],
    }
    return {f"RAY_SERVE_{name}_PORT": str(port) for name, port in ports.items()}
