"""The two endpoints that other projects' clients use, and what the service itself knows of them."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

import workbench as wb
from serving.spec.tenants import Tenant
from workbench.endpoints.deployed import Endpoint

TENANT = "client"
"""The clients have a key of their own, so that the service counts their requests apart."""

MAX_ONGOING, MAX_QUEUED = 2, 1
CAPACITY = MAX_ONGOING + MAX_QUEUED
LAG_S = 60.0
"""Seconds within which the service has counted what has happened, on a busy machine."""

SETTLED_S = 3.0
"""Seconds without a change after which all earlier requests are counted; gates report four times
per second."""


def model_spec() -> wb.ModelSpec:
    """Return the embedded model, with tool calling and a queue that is soon full.

    Its steps take 20 ms, so that answers of requests sent together overlap on any machine.
    """
    model = wb.ModelSpec(
        max_model_len=2048,
        engine_kwargs={"enable_auto_tool_choice": True, "tool_call_parser": "hermes"},
        scaling=wb.ScalingSpec(
            target_ongoing_requests=MAX_ONGOING,
            max_ongoing_requests=MAX_ONGOING,
            max_queued_requests=MAX_QUEUED,
        ),
    )
    return wb.experiments.paced(model, min_step_ms=20)


def specs() -> dict[str, Any]:
    """Return the spec of each path."""
    return {
        "direct": wb.ServiceSpec(name="direct", port=0, model=model_spec()),
        "composed": wb.PipelineSpec(
            name="composed", route_prefix="/composed", port=0, models=(model_spec(),)
        ),
    }


@dataclass(frozen=True)
class Served:
    """An endpoint of one path."""

    endpoint: Endpoint

    @property
    def target(self) -> dict[str, str]:
        """What a client needs to know."""
        url = self.endpoint.base_url
        return {
            "base_url": url,
            "root_url": url.removesuffix("/v1"),
            "api_key": self.endpoint.tenant_keys[TENANT].get_secret_value(),
            "model": self.endpoint.model_id,
        }

    def counted(self) -> dict[str, int]:
        """Return what the service has counted for the clients: requests, tokens, shed, ..."""
        table = self.endpoint.usage()
        if TENANT not in table.index:
            return {str(name): 0 for name in table.columns}
        counts = table.loc[TENANT].tolist()
        return {str(name): int(n) for name, n in zip(table.columns, counts, strict=True)}

    def settled(self) -> dict[str, int]:
        """Return what the service has counted, once that no longer changes."""
        counts, since = self.counted(), time.monotonic()
        while time.monotonic() - since < SETTLED_S:
            time.sleep(0.1)
            if (now := self.counted()) != counts:
                counts, since = now, time.monotonic()
        return counts

    def wait_for_count(self, before: dict[str, int], **expected: int) -> dict[str, int]:
        """Return the increase of each expected count; wait until it is as expected, or LAG_S."""
        deadline = time.monotonic() + LAG_S
        while True:
            now = self.counted()
            increase = {name: now[name] - before[name] for name in expected}
            if increase == expected or time.monotonic() > deadline:
                return increase
            time.sleep(0.1)

    @contextmanager
    def full(self) -> Iterator[threading.Event]:
        """Fill the service with the owner's requests until the event that it yields is set."""
        stop, shed = threading.Event(), threading.Event()
        # One more than the capacity: it is shed, and takes the place of any that ends early.
        holders = [
            threading.Thread(target=self._hold, args=(stop, shed)) for _ in range(CAPACITY + 1)
        ]
        for holder in holders:
            holder.start()
        try:
            assert shed.wait(120), "the service is not full"
            yield stop
        finally:
            stop.set()
            for holder in holders:
                holder.join()

    def _hold(self, stop: threading.Event, shed: threading.Event) -> None:
        body = {"model": self.endpoint.model_id, "prompt": "a", "max_tokens": 1800}
        body |= {"ignore_eos": True, "stream": True}
        key = self.endpoint.api_key.get_secret_value()
        with httpx.Client(headers={"authorization": f"Bearer {key}"}, timeout=240) as client:
            while not stop.is_set():
                url = f"{self.endpoint.base_url}/completions"
                with client.stream("POST", url, json=body) as reply:
                    if reply.status_code == 429:
                        shed.set()
                        stop.wait(0.05)
                    for _ in reply.iter_raw():
                        if stop.is_set():
                            break


def engine_metric(name: str) -> float:
    """Return the sum of a metric of vLLM over all engines, as the nodes export it each second."""
    import ray

    pattern = re.compile(rf"^ray_vllm[:_]{name}(?:_total)?(?:\{{.*\}})? (\S+)$", re.MULTILINE)
    values = []
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        values += pattern.findall(httpx.get(url, timeout=60).text)
    return sum(map(float, values))


def settled_metric(name: str, quiet_s: float = 5.0) -> float:
    """Return a metric once it has not changed for some seconds: earlier requests are in it."""
    value, since = engine_metric(name), time.monotonic()
    while time.monotonic() - since < quiet_s:
        time.sleep(0.5)
        if (now := engine_metric(name)) != value:
            value, since = now, time.monotonic()
    return value


@contextmanager
def deployed() -> Iterator[dict[str, Served]]:
    """Deploy the model on both paths, on one cluster."""
    with ExitStack() as ends:
        served = {}
        for path, spec in specs().items():
            endpoint = ends.enter_context(
                wb.deploy(spec, tenants=[Tenant(name=TENANT)], progress=lambda line: None)
            )
            served[path] = Served(endpoint)
        yield served
