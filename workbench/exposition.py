"""The few figures we want out of a Ray node's `/metrics`, which is a megabyte of text; pure.

The lines are picked by a prefix search before any is parsed. Ray 2.60 writes a metric of vLLM's as
`ray_vllm_num_requests_running`, older ones as `ray_vllm:num_requests_running`, and counters end
in `_total` in one and not in the other: here both are `vllm_num_requests_running`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

ENGINE_METRICS = {
    "vllm_num_requests_running": "running_requests",
    "vllm_num_requests_waiting": "waiting_requests",
    "vllm_kv_cache_usage_perc": "kv_cache_usage",
    "vllm_prefix_cache_queries": "prefix_queries",
    "vllm_prefix_cache_hits": "prefix_hits",
    "vllm_num_preemptions": "preemptions",
    "vllm_prompt_tokens": "prompt_tokens",
    "vllm_generation_tokens": "output_tokens",
}
"""A metric of vLLM's, as Ray exports it, and the field of a `ReplicaSample` it fills."""

OLDER = {"vllm_gpu_cache_usage_perc": "vllm_kv_cache_usage_perc"}
"""What vLLM called a metric before."""

TOTAL_REQUESTS = "serve_autoscaling_total_requests"
TARGET_ONGOING = "serve_autoscaling_target_ongoing_requests"
HANDLE_QUEUE = "serve_deployment_queued_queries"
POLICY_DESIRED, POLICY_SAW = "workbench_policy_desired", "workbench_policy_saw"
POLICY_LED = "workbench_policy_led"
GATE_QUEUED, GATE_SHED = "workbench_gate_queued", "workbench_gate_shed"
IN_FLIGHT, HTTP_REQUESTS = "serve_num_ongoing_http_requests", "serve_num_http_requests"
GPU_METRICS = {
    "node_gpus_utilization": "utilization",
    "node_gram_used": "memory_gib",
    "node_gpu_power_milliwatts": "power_w",
}
"""A card's metrics of Ray's, and the field of a `GpuSample`: percent, MiB and milliwatts there."""

SERVE_METRICS = (TOTAL_REQUESTS, TARGET_ONGOING, HANDLE_QUEUE, IN_FLIGHT, HTTP_REQUESTS)
OUR_METRICS = (POLICY_DESIRED, POLICY_SAW, POLICY_LED, GATE_QUEUED, GATE_SHED)
WANTED = (*ENGINE_METRICS, *OLDER, *SERVE_METRICS, *OUR_METRICS, *GPU_METRICS)

_FAMILIES = (b"ray_vllm", b"ray_serve_", b"ray_workbench_", b"ray_node_g")
_NAMES = {
    f"ray_{name}{end}".replace("vllm_", f"vllm{mark}", 1).encode()
    for name in WANTED
    for mark in "_:"
    for end in ("", "_total")
}
# Ray puts them on every line, and the parser takes its time a character.
_SAME_EVERYWHERE = re.compile(
    rb'(?<=[{,])(?:Component|NodeAddress|SessionName|Version|WorkerId|otel_scope_\w+)="[^"\\]*",?'
)


@dataclass
class Exposition:
    """The wanted samples of one node, by normalized name: each its labels and its value."""

    samples: dict[str, list[tuple[dict[str, str], float]]] = field(default_factory=dict)

    def rows(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """The samples of a name that have these labels."""
        for own, value in self.samples.get(name, ()):
            if all(own.get(key) == wanted for key, wanted in labels.items()):
                yield own, value

    def total(self, name: str, **labels: str) -> float | None:
        """Their sum; None where there is none."""
        return add(value for _, value in self.rows(name, **labels))


def parse(text: bytes) -> Exposition:
    """The wanted samples in a `/metrics` answer. Raises ValueError for what is none."""
    from prometheus_client.parser import text_string_to_metric_families

    near = [line for line in text.split(b"\n") if line.startswith(_FAMILIES)]
    picked = [line for line in near if line[: line.find(b"{")] in _NAMES]
    found = Exposition()
    short = _SAME_EVERYWHERE.sub(b"", b"\n".join([*picked, b""]))
    for family in text_string_to_metric_families(short.decode()):
        for sample in family.samples:
            rows = found.samples.setdefault(_plain(sample.name), [])
            if not math.isnan(sample.value):
                rows.append((sample.labels, sample.value))
    return found


def merged(nodes: Iterable[Exposition]) -> Exposition:
    """All nodes' samples as one."""
    found = Exposition()
    for node in nodes:
        for name, rows in node.samples.items():
            found.samples.setdefault(name, []).extend(rows)
    return found


def add(values: Iterable[float | None]) -> float | None:
    """The sum of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _plain(name: str) -> str:
    short = name.removeprefix("ray_").replace(":", "_").removesuffix("_total")
    return OLDER.get(short, short)
