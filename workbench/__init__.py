"""What runs beside the notebook: deploy a service, load it, measure it, show it.

Names are loaded when first used, so that ``import workbench`` is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Endpoint": "workbench.endpoint",
    "deploy": "workbench.endpoint",
    "ModelSpec": "serving.spec",
    "ScalingSpec": "serving.spec",
    "ServiceSpec": "serving.spec",
    "RequestRecord": "workbench.client",
    "LoopWatch": "workbench.client",
    "closed_loop": "workbench.client",
    "start_clock": "workbench.client",
    "stream_chat": "workbench.client",
    "stream_completion": "workbench.client",
    "ClientHealth": "workbench.metrics",
    "SLO": "workbench.metrics",
    "summarize": "workbench.metrics",
    "Run": "workbench.run",
    "ReplicaWatch": "workbench.telemetry",
    "latency_distributions": "workbench.figures",
    "render": "workbench.figures",
    "request_timeline": "workbench.figures",
    "throughput_over_time": "workbench.figures",
    "write_report": "workbench.report",
    "WorkbenchError": "serving.errors",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
