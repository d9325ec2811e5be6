"""What watching costs: the kernel's share of a core for telemetry and for the dashboard.

`dashboard_core_share` and `kernel_growth_mb`: a real kernel plays an hour of a busy dashboard (8
replicas, 10 requests a second, two drawings a second) as fast as it can, and its CPU time is taken
over that hour; its memory is compared with that after the first five minutes (`_replay.py`).

`telemetry_core_share`: CPU time of this process, all its threads, over wall time, while `Telemetry`
samples 8 replicas once a second into a run's folder, less the same of the process at rest just
before. On Ray and Ray Serve, and one node's real `/metrics`; the replicas are Serve's own, but in
place of an engine each exports vLLM's metrics under its names (gauges, counters and histograms with
as many buckets), because 8 engines do not fit on a small machine. `metrics_mib` is what the node
answers each time, `samples` how many rows a second came of it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from _replay import HOUR_S, hour_in_a_kernel
from _report import report
from pydantic import SecretStr

import workbench as wb
from serving.cluster import connection
from serving.spec.model import deployment_name
from workbench.records import Sample
from workbench.telemetry.scrape import ENGINE_METRICS

GOALS = {
    "telemetry_core_share": {"max": 0.05},
    "dashboard_core_share": {"max": 0.10},
    "kernel_growth_mb": {"max": 100},
}
REPLICAS, HISTOGRAMS, BUCKETS = 8, 20, 20


def main() -> None:
    """Measure and print the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--replayed", type=int, default=HOUR_S, help="seconds played in a kernel")
    options = parser.parse_args()
    figures = hour_in_a_kernel(options.replayed)
    print(", ".join(f"{name} {value}" for name, value in figures.items()), flush=True)
    report("dashboard", telemetry_cost(options.seconds) | figures, GOALS)


def telemetry_cost(seconds: float) -> dict[str, float]:
    """The figures, with a cluster of their own that ends with them."""
    spec = wb.ServiceSpec(port=0, model=wb.ModelSpec(id="engine"))
    where = connection.connect(spec)
    try:
        serve_replicas(spec)
        endpoint = wb.Endpoint(spec, where, spec.port, SecretStr("none"))
        rest = core_share(seconds)
        with tempfile.TemporaryDirectory() as folder:
            run = wb.Run.create(folder, {}, run_id="r")
            seen: list[Sample] = []

            def keep(sample: Sample) -> None:
                run.append_telemetry(sample)
                seen.append(sample)

            with wb.Telemetry(endpoint, wb.client.start_clock(), keep):
                time.sleep(5)  # the first samples import what they need
                watched = core_share(seconds)
            lines = len((Path(folder) / "r" / "telemetry.jsonl").read_text().splitlines())
        assert lines == len(seen)
        assert {s.replica for s in seen if s.__struct_config__.tag == "replica"} == names(spec)
        return {
            "telemetry_core_share": round(watched - rest, 4),
            "core_share_at_rest": round(rest, 4),
            "replicas": REPLICAS,
            "samples_per_second": round(lines / (seconds + 5), 1),
            "metrics_mib": round(metrics_bytes() / 2**20, 2),
        }
    finally:
        connection.disconnect()


def core_share(seconds: float) -> float:
    """CPU time of this process over wall time, for so long."""
    wall, cpu = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    return (time.process_time() - cpu) / (time.perf_counter() - wall)


def serve_replicas(spec: wb.ServiceSpec) -> None:
    """A Serve application under the spec's names whose replicas export an engine's metrics."""
    from ray import serve

    deployment = serve.deployment(
        name=deployment_name(spec.model),
        num_replicas=REPLICAS,
        ray_actor_options={"num_cpus": 0},
    )(Exporter)
    serve.run(deployment.bind(list(ENGINE_METRICS)), name=spec.name, route_prefix=None)
    deadline = time.monotonic() + 60
    while metrics_text().count(b"ray_vllm_num_requests_running{") < REPLICAS:
        assert time.monotonic() < deadline, "the replicas' metrics did not appear"
        time.sleep(1)


class Exporter:
    """What an engine shows, without the engine."""

    def __init__(self, names: list[str]) -> None:
        from ray import serve
        from ray.util.metrics import Gauge, Histogram

        tags = {
            "ReplicaId": serve.get_replica_context().replica_id.unique_id,
            "engine": "0",
            "model_name": "engine",
        }
        self.gauges = [Gauge(name, name, tuple(tags)) for name in names]
        bounds = [float(2**i) for i in range(BUCKETS)]
        for i in range(HISTOGRAMS):
            Histogram(f"vllm_histogram_{i}", "", bounds, tuple(tags)).observe(3.0, tags)
        self.tags = tags
        import threading

        threading.Thread(target=self.export, daemon=True).start()

    def export(self) -> None:
        for value in range(10**9):
            for gauge in self.gauges:
                gauge.set(float(value), self.tags)
            time.sleep(0.5)


def names(spec: wb.ServiceSpec) -> set[str]:
    """Serve's ids of the replicas."""
    from serving.deploy import status

    told: dict[str, Any] = status.details()["applications"][spec.name]["deployments"]
    return {r["replica_id"] for r in told[deployment_name(spec.model)]["replicas"]}


def metrics_text() -> bytes:
    """What the only node shows."""
    import ray

    [node] = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return bytes(answer.read())


def metrics_bytes() -> int:
    return len(metrics_text())


if __name__ == "__main__":
    main()
