"""Parse the `/metrics` of a node, as Ray exports them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from serving.compat.ray import (
    GPU_METRICS,
    HANDLE_QUEUE,
    HTTP_REQUESTS,
    IN_FLIGHT,
    TARGET_ONGOING,
    TOTAL_REQUESTS,
)
from serving.compat.vllm import ENGINE_METRICS, OLDER_METRICS, TRANSFER_METRICS

SERVE_METRICS = (TOTAL_REQUESTS, TARGET_ONGOING, HANDLE_QUEUE, IN_FLIGHT, HTTP_REQUESTS)

POLICY_DESIRED, POLICY_SAW = "workbench_policy_desired", "workbench_policy_saw"
POLICY_LED = "workbench_policy_led"
GATE_QUEUED, GATE_SHED = "workbench_gate_queued", "workbench_gate_shed"
WORKBENCH_METRICS = (POLICY_DESIRED, POLICY_SAW, POLICY_LED, GATE_QUEUED, GATE_SHED)

_METRICS = (
    *ENGINE_METRICS,
    *TRANSFER_METRICS,
    *OLDER_METRICS,
    *SERVE_METRICS,
    *WORKBENCH_METRICS,
    *GPU_METRICS,
)
_PREFIXES = (b"ray_vllm", b"ray_serve_", b"ray_workbench_", b"ray_node_g")
_NAMES = {
    f"ray_{name}{suffix}".replace("vllm_", f"vllm{separator}", 1).encode()
    for name in _METRICS
    for separator in "_:"
    for suffix in ("", "_total")
}
# Ray adds these labels to every line, and the parser's time grows with every character.
_CONSTANT_LABELS = re.compile(
    rb'(?<=[{,])(?:Component|NodeAddress|SessionName|Version|WorkerId|otel_scope_\w+)="[^"\\]*",?'
)


@dataclass
class MetricsPage:
    """The metrics in use of one node: by normalized name, the labels and the value of each."""

    samples: dict[str, list[tuple[dict[str, str], float]]] = field(default_factory=dict)

    def rows(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """Yield the labels and values of a metric that have these labels."""
        for own_labels, value in self.samples.get(name, ()):
            if all(own_labels.get(label) == wanted for label, wanted in labels.items()):
                yield own_labels, value

    def total(self, name: str, **labels: str) -> float | None:
        """Return the sum of the values of a metric that have these labels, or None."""
        return total_of(value for _, value in self.rows(name, **labels))


def parse_metrics(text: bytes) -> MetricsPage:
    """Parse the answer of `/metrics`.

    Raises:
        ValueError: The text is not in the Prometheus format.
    """
    from prometheus_client.parser import text_string_to_metric_families

    lines = [line for line in text.split(b"\n") if line.startswith(_PREFIXES)]
    lines = [line for line in lines if line[: line.find(b"{")] in _NAMES]
    short = _CONSTANT_LABELS.sub(b"", b"\n".join([*lines, b""]))
    page = MetricsPage()
    for family in text_string_to_metric_families(short.decode()):
        for sample in family.samples:
            rows = page.samples.setdefault(_normalized(sample.name), [])
            if not math.isnan(sample.value):
                rows.append((sample.labels, sample.value))
    return page


def merge_pages(pages: Iterable[MetricsPage]) -> MetricsPage:
    """Return the metrics of all nodes as one page."""
    merged = MetricsPage()
    for page in pages:
        for name, rows in page.samples.items():
            merged.samples.setdefault(name, []).extend(rows)
    return merged


def total_of(values: Iterable[float | None]) -> float | None:
    """Return the sum of the known values, or None if no value is known."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _normalized(name: str) -> str:
    short = name.removeprefix("ray_").replace(":", "_").removesuffix("_total")
    return OLDER_METRICS.get(short, short)
