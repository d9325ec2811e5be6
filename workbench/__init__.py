"""What runs beside the notebook: deploy a service, load it, measure it, show it.

Names are loaded when first used, so that ``import workbench`` is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Endpoint": "workbench.endpoint",
    "deploy": "workbench.endpoint",
    "remote": "workbench.remote",
    "ModelSpec": "serving.spec",
    "ScalingSpec": "serving.spec",
    "ServiceSpec": "serving.spec",
    "RequestRecord": "workbench.client",
    "LoopWatch": "workbench.client",
    "closed_loop": "workbench.client",
    "start_clock": "workbench.client",
    "stream_chat": "workbench.client",
    "stream_completion": "workbench.client",
    "Closed": "workbench.arrival_specs",
    "Constant": "workbench.arrival_specs",
    "Gamma": "workbench.arrival_specs",
    "Poisson": "workbench.arrival_specs",
    "Ramp": "workbench.arrival_specs",
    "Replay": "workbench.arrival_specs",
    "Steps": "workbench.arrival_specs",
    "Conversations": "workbench.prompt_specs",
    "FilePrompts": "workbench.prompt_specs",
    "LogNormal": "workbench.prompt_specs",
    "RandomPrompts": "workbench.prompt_specs",
    "Traced": "workbench.prompt_specs",
    "Uniform": "workbench.prompt_specs",
    "LoadSpec": "workbench.load_spec",
    "start_load": "workbench.load",
    "curve": "workbench.probing",
    "prober": "workbench.probing",
    "highest_load": "workbench.search",
    "parameters_in": "workbench.notebooks",
    "ClientHealth": "workbench.metrics",
    "SLO": "workbench.metrics",
    "summarize": "workbench.metrics",
    "Run": "workbench.run",
    "ReplicaWatch": "workbench.telemetry",
    "latency_distributions": "workbench.figures",
    "render": "workbench.figures",
    "request_timeline": "workbench.figures",
    "throughput_over_time": "workbench.figures",
    "search_figure": "workbench.curves",
    "throughput_latency_curve": "workbench.curves",
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
