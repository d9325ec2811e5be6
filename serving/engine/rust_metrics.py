"""The metrics of a replica whose engine core has two clients.

vLLM counts requests and their tokens and times in the process that reads them, so each client has
its part of the counters and histograms. The scheduler's statistics, which are the gauges, all come
to the client in Python (``serving.compat.vllm_scheduler``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from serving.compat.vllm import METRIC_PREFIX

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

_Key = tuple[str, frozenset[tuple[str, str]]]
ADDED = ("counter", "histogram")


class Registry(Protocol):
    """A source of metrics, such as prometheus_client's registry."""

    def collect(self) -> Iterable[Metric]:
        """Return the metrics."""


class SharedMetrics:
    """The metrics of both clients of one engine core.

    Args:
        registry: The metrics of the client in Python.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._others: dict[_Key, Sample] = {}

    def read(self, page: str) -> None:
        """Take the other client's metrics, in Prometheus' text format, in place of the last ones.

        Raises:
            ValueError: It is no such page. The last metrics remain.
        """
        # The type of a counter is not read: the page has it under the name without "_total".
        families = text_string_to_metric_families(page)
        samples = (sample for family in families for sample in family.samples)
        self._others = {_key(s): s for s in samples if s.name.startswith(METRIC_PREFIX)}

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics in Python, with the other client's counts added."""
        for family in self._registry.collect():
            yield _added(family, self._others) if family.type in ADDED else family


def _added(family: Metric, others: dict[_Key, Sample]) -> Metric:
    total = Metric(family.name, family.documentation, family.type)
    for sample in family.samples:
        other = others.get(_key(sample))
        value = sample.value if other is None else sample.value + other.value
        total.add_sample(sample.name, sample.labels, value)
    return total


def _key(sample: Sample) -> _Key:
    """Return the name and labels, with a bucket's bound in one form: 1 is also written as 1.0."""
    labels = {k: str(float(v)) if k == "le" else v for k, v in sample.labels.items()}
    return sample.name, frozenset(labels.items())
