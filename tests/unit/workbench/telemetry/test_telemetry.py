"""Samples from `/metrics` and Serve's details of scripted nodes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from pydantic import SecretStr
from support.installed import source
from support.loop_clock import LoopClock

from serving.compat.ray import GPU_METRICS
from serving.compat.vllm import ENGINE_METRICS
from workbench.endpoints.remote import Remote
from workbench.records import (
    DecisionSample,
    DeploymentSample,
    GpuSample,
    ProxySample,
    ReplicaSample,
    Sample,
)
from workbench.telemetry import metrics_page
from workbench.telemetry.builder import SampleBuilder
from workbench.telemetry.metrics_page import MetricsPage, parse_metrics
from workbench.telemetry.sampler import Telemetry
from workbench.telemetry.scrape import Node, Scraper, live_nodes

# As Ray 2.60 writes them, and as before: with vLLM's colon, and without the suffix of counters.
SAME = b'NodeAddress="192.0.2.2",ReplicaId="r1",SessionName="s",Version="2.60.0",WorkerId="w"'
NEW = b"""# HELP ray_vllm_num_requests_running Number of requests in model execution batches.
# TYPE ray_vllm_num_requests_running gauge
ray_vllm_num_requests_running{Component="core_worker",SAME,engine="0",otel_scope_version=""} 8.0
ray_vllm_num_requests_waiting_by_reason{SAME,engine="0",reason="capacity"} 3.0
ray_vllm_num_requests_waiting{SAME,engine="0",model_name="m"} 3.0
ray_vllm_kv_cache_usage_perc{SAME,engine="0",model_name="m"} 0.25
ray_vllm_prompt_tokens_by_source_total{SAME,engine="0",model_name="m",source="local"} 9.0
ray_vllm_prompt_tokens_total{SAME,engine="0",model_name="m"} 640.0
ray_vllm_generation_tokens_total{SAME,engine="0",model_name="m"} 1.234e+06
ray_node_cpu_utilization{ip="192.0.2.2"} 12.0
""".replace(b"SAME", SAME)
OLD = b"""ray_vllm:num_requests_running{Component="core_worker",ReplicaId="r1",model_name="m"} 8.0
ray_vllm:num_requests_waiting{Component="core_worker",ReplicaId="r1",model_name="m"} 3.0
ray_vllm:gpu_cache_usage_perc{Component="core_worker",ReplicaId="r1",model_name="m"} 0.25
ray_vllm:prompt_tokens{Component="core_worker",ReplicaId="r1",model_name="m"} 640.0
ray_vllm:generation_tokens_total{Component="core_worker",ReplicaId="r1",model_name="m"} 1234000.0
"""
ENGINE = {
    "running_requests": 8,
    "waiting_requests": 3,
    "kv_cache_usage": 0.25,
    "prompt_tokens": 640,
    "output_tokens": 1_234_000,
}


def exposed(**rows: list[tuple[dict[str, str], float]]) -> MetricsPage:
    return MetricsPage(rows)


def details(*replicas: dict[str, Any], target: int = 1, **config: Any) -> dict[str, Any]:
    deployment = {
        "target_num_replicas": target,
        "replicas": list(replicas),
        "deployment_config": {"autoscaling_config": config or None},
    }
    return {
        "applications": {"llm": {"deployments": {"m": deployment}}},
        "proxies": {"n1": {"status": "HEALTHY"}},
    }


def replica(name: str, state: str = "RUNNING", node: str | None = "n1") -> dict[str, Any]:
    return {"replica_id": name, "state": state} | ({} if node is None else {"node_id": node})


class TestMetricsPage:
    @pytest.mark.parametrize("text", [NEW, OLD], ids=["2.60", "older"])
    def test_both_forms_of_a_name_are_read(self, text: bytes) -> None:
        builder = SampleBuilder("llm", frozenset({"m"}))
        _, sample, *_ = builder.samples(1.0, details(replica("r1")), {"n1": parse_metrics(text)})
        assert isinstance(sample, ReplicaSample)
        assert {name: getattr(sample, name) for name in ENGINE} == ENGINE
        assert (sample.prefix_hits, sample.preemptions) == (None, None), "absent is None"

    def test_transfers_of_kv_blocks(self) -> None:
        """The lines of vLLM's histograms as Ray exports them."""
        labels = 'ReplicaId="r1",application="llm",deployment="m"'
        text = "".join(
            f"ray_vllm_nixl_{name}{{{labels}}} {value}\n"
            for name, value in (
                ("xfer_time_seconds_count", 3.0),
                ("xfer_time_seconds_sum", 0.25),
                ("bytes_transferred_sum", 4096.0),
            )
        )
        builder = SampleBuilder("llm", frozenset({"m"}))
        pages = {"n1": parse_metrics(text.encode())}
        _, sample, *_ = builder.samples(1.0, details(replica("r1")), pages)
        assert isinstance(sample, ReplicaSample)
        moved = (sample.kv_transfers, sample.kv_transfer_s, sample.kv_transfer_bytes)
        assert moved == (3, 0.25, 4096)

    def test_only_metrics_in_use_are_parsed(self) -> None:
        assert set(parse_metrics(NEW).samples) == {
            "vllm_num_requests_running",
            "vllm_num_requests_waiting",
            "vllm_kv_cache_usage_perc",
            "vllm_prompt_tokens",
            "vllm_generation_tokens",
        }

    def test_label_with_a_quote_and_a_comma(self) -> None:
        line = b'ray_serve_num_http_requests_total{Version="2",route="/a\\",b",method="GET"} 2.0\n'
        [(labels, value)] = parse_metrics(line).rows("serve_num_http_requests")
        assert (labels, value) == ({"route": '/a",b', "method": "GET"}, 2.0)

    def test_nan_is_absent(self) -> None:
        text = b'ray_workbench_policy_led{figure="%s"} %s\n'
        page = parse_metrics(text % (b"ttft_ms", b"NaN") + text % (b"target", b"2.0"))
        assert list(page.rows("workbench_policy_led")) == [({"figure": "target"}, 2.0)]

    def test_invalid_text_is_rejected(self) -> None:
        with pytest.raises(ValueError):  # noqa: PT011 - the parser's own
            parse_metrics(b"ray_vllm_num_requests_running{ReplicaId=} x")

    def test_installed_vllm_and_ray_have_every_name(self) -> None:
        """A metric that is renamed there must not become an empty chart."""
        engine = source("vllm", "v1", "metrics", "loggers.py")
        for name in ENGINE_METRICS:
            assert f'"vllm:{name.removeprefix("vllm_")}"' in engine
        wrapper = source("vllm", "v1", "metrics", "ray_wrappers.py")
        assert '"ReplicaId"' in wrapper
        serve = "".join(
            source("ray", "serve", "_private", file)
            for file in ("autoscaling_state.py", "router.py", "request_ingress_metrics.py")
        ).replace('f"serve_num_{protocol_name}_requests"', '"serve_num_http_requests"')
        serve = serve.replace("serve_num_ongoing_{protocol_name}", "serve_num_ongoing_http")
        for name in metrics_page.SERVE_METRICS:
            assert f'"{name}"' in serve
        node = source("ray", "dashboard", "modules", "reporter", "reporter_agent.py")
        for name in GPU_METRICS:
            assert f'"{name}"' in node
        from serving.deploy import autoscaling
        from serving.engine import stats

        exported = (autoscaling.DESIRED, autoscaling.SAW, autoscaling.LED, *stats.GATE_METRICS[1:])
        assert exported == metrics_page.WORKBENCH_METRICS


class TestScraper:
    @pytest.fixture
    def server(self) -> Iterator[tuple[int, threading.Event]]:
        """Answers `/metrics` at once, and `/slow` once the event is set."""
        go_on = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/slow":
                    go_on.wait(200)
                with suppress(BrokenPipeError):  # The client has closed the connection.
                    self.send_response(500 if self.path == "/broken" else 200)
                    self.end_headers()
                    self.wfile.write(NEW)

            def log_message(self, *words: Any) -> None:
                pass

        running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running.server_port, go_on
        go_on.set()
        running.shutdown()
        thread.join()
        running.server_close()

    def test_node_without_an_answer_is_a_gap(self, server: tuple[int, threading.Event]) -> None:
        port, go_on = server
        free = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
        closed = free.server_port
        free.server_close()
        nodes = [
            Node("well", f"http://127.0.0.1:{port}/metrics"),
            Node("slow", f"http://127.0.0.1:{port}/slow"),
            Node("broken", f"http://127.0.0.1:{port}/broken"),
            Node("closed", f"http://127.0.0.1:{closed}/metrics"),
            Node("well too", f"http://127.0.0.1:{port}/metrics"),
        ]

        async def scrape() -> None:
            clock = LoopClock()
            async with Scraper(wait_s=60, timeout_s=1000) as scraper:
                first = asyncio.create_task(scraper.scrape(nodes))
                while sum(task.done() for task in scraper._pending.values()) < 4:
                    await asyncio.sleep(0.01)
                clock.ahead_s = 100  # Only the slow one is still awaited.
                pages = await first
                assert set(pages) == {"well", "well too"}
                assert pages["well"].total("vllm_num_requests_running") == 8
                assert set(scraper.failures) == {"slow", "broken", "closed"}
                assert "no answer in 60 s" in scraper.failures["slow"]
                go_on.set()
                pages = await scraper.scrape(nodes)
                assert set(pages) == {"well", "well too", "slow"}, "a late answer is used"
                assert set(scraper.failures) == {"broken", "closed"}

        asyncio.run(scrape())

    def test_node_that_never_answers_times_out(self, server: tuple[int, threading.Event]) -> None:
        async def scrape() -> None:
            async with Scraper(wait_s=100, timeout_s=0.2) as scraper:
                assert await scraper.scrape([Node("n", f"http://127.0.0.1:{server[0]}/slow")]) == {}
                assert "TimeoutError" in scraper.failures["n"]

        asyncio.run(scrape())

    def test_live_nodes_with_metrics(self) -> None:
        node = {"NodeManagerAddress": "10.0.0.1", "MetricsExportPort": 7, "Alive": True}
        nodes = [
            node | {"NodeID": "a"},
            node | {"NodeID": "b", "Alive": False},
            node | {"NodeID": "c", "MetricsExportPort": 0},
            node | {"NodeID": "d", "NodeManagerAddress": "fd00::1"},
        ]
        assert live_nodes(nodes) == [
            Node("a", "http://10.0.0.1:7/metrics"),
            Node("d", "http://[fd00::1]:7/metrics"),
        ]


LABELS = {"deployment": "m", "application": "llm"}


class TestSampleBuilder:
    def samples(self, serve_details: dict[str, Any], **nodes: MetricsPage) -> list[Sample]:
        return SampleBuilder("llm", frozenset({"m"})).samples(1.0, serve_details, nodes)

    def test_queued_requests_are_summed_over_handles_gates_and_engines(self) -> None:
        own = exposed(
            serve_deployment_queued_queries=[
                (LABELS, 4.0),
                (LABELS | {"deployment": "x"}, 9.0),
            ],
            workbench_gate_queued=[(LABELS | {"replica": "r1"}, 2.0)],
            vllm_num_requests_waiting=[({"ReplicaId": "r1"}, 1.0), ({"ReplicaId": "gone"}, 9.0)],
        )
        sample = self.samples(details(replica("r1")), n1=own)[0]
        assert isinstance(sample, DeploymentSample)
        assert sample.queued_requests == 7
        assert sample.total_requests is None

    def test_silent_node_leaves_gaps_not_zeros(self) -> None:
        serve_details = details(replica("r1"), replica("r2", node="n2"), target=2)
        own = exposed(
            vllm_num_requests_waiting=[({"ReplicaId": "r1"}, 1.0)],
            serve_num_ongoing_http_requests=[({}, 5.0)],
        )
        deployment, own_replica, proxy = self.samples(serve_details, n1=own)
        assert isinstance(deployment, DeploymentSample)
        assert (deployment.target, deployment.running, deployment.queued_requests) == (2, 2, None)
        assert isinstance(own_replica, ReplicaSample)
        assert (own_replica.replica, own_replica.waiting_requests) == ("r1", 1)
        assert isinstance(proxy, ProxySample)
        assert (proxy.in_flight, proxy.shed) == (5, None)
        [silent] = self.samples(serve_details)
        assert silent == DeploymentSample(
            time_s=1.0, deployment="m", target=2, running=2, starting=0, stopping=0
        )

    def test_replica_without_a_node_is_counted_but_not_sampled(self) -> None:
        serve_details = details(
            replica("r1", "STARTING", None), replica("r2", "STARTING"), target=2
        )
        deployment, own_replica, _ = self.samples(serve_details, n1=exposed())
        assert isinstance(deployment, DeploymentSample)
        assert (deployment.running, deployment.starting) == (0, 2)
        assert isinstance(own_replica, ReplicaSample)
        assert (own_replica.replica, own_replica.state, own_replica.running_requests) == (
            "r2",
            "starting",
            None,
        )

    def test_refusals_of_former_replicas_stay_counted(self) -> None:
        builder = SampleBuilder("llm", frozenset({"m"}))
        counts = []
        for shed in ({"r1": 3.0}, {"r1": 5.0, "r2": 1.0}, {"r2": 2.0}):
            page = exposed(
                workbench_gate_shed=[(LABELS | {"replica": r}, v) for r, v in shed.items()]
            )
            deployment = builder.samples(1.0, details(replica("r2")), {"n1": page})[0]
            assert isinstance(deployment, DeploymentSample)
            counts.append(deployment.shed)
        assert counts == [3, 6, 7]

    def test_proxy_refusals_are_429_and_503(self) -> None:
        requests = {"200": 10.0, "429": 4.0, "503": 1.0}
        page = exposed(
            serve_num_http_requests=[
                ({"application": "llm", "status_code": code}, n) for code, n in requests.items()
            ]
        )
        *_, proxy = self.samples(details(), n1=page)
        assert isinstance(proxy, ProxySample)
        assert proxy.shed == 5

    def test_units_of_gpu_metrics(self) -> None:
        card = {"GpuIndex": "1", "ip": "10.0.0.1"}
        page = exposed(
            node_gpus_utilization=[(card, 45.0)],
            node_gram_used=[(card, 2048.0)],
            node_gpu_power_milliwatts=[(card, 250_000.0)],
        )
        *_, gpu = self.samples(details(), n1=page)
        assert gpu == GpuSample(
            time_s=1.0, node="n1", gpu=1, utilization=0.45, memory_gib=2.0, power_w=250.0
        )

    def test_change_of_target_is_a_decision_with_its_delay(self) -> None:
        builder = SampleBuilder("llm", frozenset())
        config = {"min_replicas": 1, "max_replicas": 4, "upscale_delay_s": 3.0}
        series = [(0, 2.0, 1), (1, 9.0, 1), (2, 9.0, 1), (3, 9.5, 1), (4, 9.5, 3), (5, 9.5, 3)]
        decisions = []
        for at, total, target in series:
            page = exposed(
                serve_autoscaling_total_requests=[(LABELS, total)],
                serve_autoscaling_target_ongoing_requests=[(LABELS, 4.0)],
            )
            serve_details = details(replica("r1"), target=target, **config)
            decisions += [
                sample
                for sample in builder.samples(float(at), serve_details, {"n1": page})
                if sample.__struct_config__.tag == "decision"
            ]
        [decision] = decisions
        assert (decision.time_s, decision.wanted_s) == (4.0, 1.0)
        assert (decision.from_target, decision.to_target, decision.desired) == (1, 3, 3)
        assert decision.held_by == "upscale_delay_s"

    led: ClassVar[dict[str, float]] = {"desired": 1.25, "ttft_ms": 250.0}

    def test_workbench_policy_reports_its_request(self) -> None:
        page = exposed(
            workbench_policy_desired=[(LABELS, 2.2)],
            serve_autoscaling_total_requests=[(LABELS, 40.0)],
            serve_autoscaling_target_ongoing_requests=[(LABELS, 4.0)],
        )
        policy = {"policy_function": "serving.deploy.autoscaling.TTFTPolicy"}
        ours = self.samples(details(replica("r1"), policy=policy), n1=page)[0]
        serves = self.samples(details(replica("r1"), min_replicas=1), n1=page)[0]
        assert isinstance(ours, DeploymentSample)
        assert isinstance(serves, DeploymentSample)
        assert (ours.desired, serves.desired) == (3, 10)

    def test_workbench_policy_reports_its_metrics_late(self) -> None:
        builder = SampleBuilder("llm", frozenset())
        policy = {"policy_function": "serving.deploy.autoscaling.TTFTPolicy"}
        moments = [(1, {"target": 1.0}), (2, {"target": 1.0}), (2, {"target": 2.0, **self.led})]
        samples: list[Sample] = []
        for at, (target, figures) in enumerate(moments):
            led = [({**LABELS, "figure": name}, value) for name, value in figures.items()]
            page = exposed(workbench_policy_led=led)
            serve_details = details(replica("r1"), target=target, max_replicas=2, policy=policy)
            samples += builder.samples(float(at), serve_details, {"n1": page})
        [decision] = [sample for sample in samples if isinstance(sample, DecisionSample)]
        assert (decision.time_s, decision.desired, decision.saw) == (1, 2, {"ttft_ms": 250.0})
        assert builder.flush() == []


def test_remote_endpoint_without_metrics_has_no_telemetry() -> None:
    lines: list[str] = []
    samples: list[Sample] = []
    there = Remote("http://127.0.0.1:1/v1", SecretStr("none"), ["m"], "m")
    with Telemetry(there, lambda: 0.0, samples.append, notify=lines.append):
        pass
    assert samples == []
    assert lines == [
        "no telemetry: http://127.0.0.1:1/v1 is not a deployment of this process, and "
        "http://127.0.0.1:1/metrics has no metrics of an engine (ConnectError)"
    ]
