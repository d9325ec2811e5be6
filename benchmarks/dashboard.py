"""Cost of observation: the kernel's share of a core for telemetry and for the dashboard.

`dashboard_core_share` and `kernel_growth_mb`: a real kernel replays an hour of a busy dashboard (8
replicas, 10 requests and two drawings per second) as fast as it can (`_replay.py`). The share is
its CPU time over that hour, and the growth is relative to its memory after the first five minutes.

`telemetry_core_share`: CPU time of this process with all its threads over wall time, while
`Telemetry` samples 8 replicas once per second into a run's folder, minus the same of the idle
process just before. Ray, Ray Serve and the node's `/metrics` are real. The replicas are Serve's,
but each exports vLLM's metrics in place of an engine (gauges, and histograms with as many buckets),
because 8 engines do not fit on a small machine. `metrics_mib` is the size of each answer of the
node, and `samples_per_second` the rows that it gives.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from _replay import HOUR_S, hour_in_a_kernel
from _report import Goal, report
from pydantic import SecretStr

import workbench as wb
from serving.cluster import connection
from serving.compat.vllm import ENGINE_METRICS
from serving.spec.model import deployment_name
from workbench.records import ReplicaSample, Sample

GOALS: dict[str, Goal] = {
    "telemetry_core_share": {"max": 0.05},
    "dashboard_core_share": {"max": 0.10},
    "kernel_growth_mb": {"max": 100},
}
REPLICAS, HISTOGRAMS, BUCKETS = 8, 20, 20


def main() -> None:
    """Measure, and print the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="seconds of telemetry")
    parser.add_argument(
        "--replayed", type=int, default=HOUR_S, help="seconds to replay in a kernel"
    )
    options = parser.parse_args()
    figures = hour_in_a_kernel(options.replayed)
    print(", ".join(f"{name} {value}" for name, value in figures.items()), flush=True)
    report("dashboard", telemetry_cost(options.seconds) | figures, GOALS)


def telemetry_cost(seconds: float) -> dict[str, float]:
    """Return the figures of telemetry, on a cluster that ends with the measurement."""
    spec = wb.ServiceSpec(port=0, model=wb.ModelSpec(id="engine"))
    cluster = connection.connect(spec)
    try:
        serve_replicas(spec)
        endpoint = wb.Endpoint(spec, cluster, spec.port, SecretStr("none"))
        idle = core_share(seconds)
        with tempfile.TemporaryDirectory() as folder:
            run = wb.Run.create(folder, {}, run_id="r")
            samples: list[Sample] = []

            def keep(sample: Sample) -> None:
                run.append_telemetry(sample)
                samples.append(sample)

            with wb.Telemetry(endpoint, wb.client.start_clock(), keep):
                time.sleep(5)  # the first samples import packages
                watched = core_share(seconds)
            lines = len((Path(folder) / "r" / "telemetry.jsonl").read_text().splitlines())
        assert lines == len(samples)
        assert {s.replica for s in samples if isinstance(s, ReplicaSample)} == replica_ids(spec)
        return {
            "telemetry_core_share": round(watched - idle, 4),
            "core_share_at_rest": round(idle, 4),
            "replicas": REPLICAS,
            "samples_per_second": round(lines / (seconds + 5), 1),
            "metrics_mib": round(metrics_bytes() / 2**20, 2),
        }
    finally:
        connection.disconnect()


def core_share(seconds: float) -> float:
    """Return the CPU time of this process over wall time, for so many seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    return (time.process_time() - cpu) / (time.perf_counter() - wall)


def serve_replicas(spec: wb.ServiceSpec) -> None:
    """Run a Serve application with the spec's names, whose replicas export an engine's metrics."""
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
    """Exports an engine's metrics without an engine."""

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
        """Set every gauge twice per second."""
        for value in range(10**9):
            for gauge in self.gauges:
                gauge.set(float(value), self.tags)
            time.sleep(0.5)


def replica_ids(spec: wb.ServiceSpec) -> set[str]:
    """Return Serve's ids of the replicas."""
    from serving.deploy import status

    deployments: dict[str, Any] = status.details()["applications"][spec.name]["deployments"]
    return {r["replica_id"] for r in deployments[deployment_name(spec.model)]["replicas"]}


def metrics_text() -> bytes:
    """Return the metrics of the only node."""
    import ray

    [node] = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        return bytes(response.read())


def metrics_bytes() -> int:
    """Return the size of the node's metrics."""
    return len(metrics_text())


if __name__ == "__main__":
    main()
