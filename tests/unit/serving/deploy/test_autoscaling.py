"""Autoscaling policies: their arithmetic, on Ray Serve's own interface, and on a real engine."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from support.installed import source

from serving.deploy.autoscaling import (
    Figures,
    TTFTPolicy,
    mean_figures,
    pressure_desired,
    ttft_desired,
)
from serving.deploy.deployments import autoscaling
from serving.engine.stats import EngineStats, FirstTokens, reported, timed
from serving.errors import SpecError
from serving.spec.scaling import EnginePressure, Requests, ScalingSpec, TTFTTarget

AIM = {"kv_cache_usage": 0.5, "waiting_requests": 4.0}


class TestSpec:
    def test_serves_own_count_is_the_default_and_stays_serves_own(self) -> None:
        assert ScalingSpec().policy == Requests()
        assert "policy" not in autoscaling(ScalingSpec())

    def test_a_policy_is_named_by_path_with_its_figures(self) -> None:
        scaling = ScalingSpec(policy=EnginePressure(kv_cache_usage=0.5))
        assert autoscaling(scaling)["policy"] == {
            "policy_function": "serving.deploy.autoscaling.EnginePressurePolicy",
            "policy_kwargs": {"kv_cache_usage": 0.5, "waiting_requests": 4},
        }

    def test_plain_data_is_told_apart_by_its_kind(self) -> None:
        given = {"kind": "ttft_target", "ttft_ms": 300}
        assert ScalingSpec(policy=given).policy == TTFTTarget(ttft_ms=300)

    @pytest.mark.parametrize(
        ("policy", "named"),
        [
            ({"kind": "engine_pressure", "kv_cache_usage": 1.5}, "kv_cache_usage"),
            ({"kind": "ttft_target"}, "ttft_ms"),
            ({"kind": "ttft_target", "ttft_ms": 1, "waiting_requests": 2}, "waiting_requests"),
            ({"kind": "moon_phase"}, "moon_phase"),
        ],
    )
    def test_what_does_not_apply_is_refused(self, policy: dict[str, Any], named: str) -> None:
        with pytest.raises(SpecError, match=named):
            ScalingSpec(policy=policy)


class TestPressure:
    @pytest.mark.parametrize(
        ("replicas", "kv", "waiting", "wanted"),
        [
            (1, 0.25, 0, 0.5),
            (2, 0.5, 0, 2),
            (2, 0.75, 0, 3),
            (1, 0.0, 8, 2),
            (2, 0.9, 2, 3.6),
            (3, 0.0, 0, 0),
        ],
    )
    def test_the_larger_of_cache_and_queue_in_proportion(
        self, replicas: int, kv: float, waiting: float, wanted: float
    ) -> None:
        saw = {"kv_cache_usage": kv, "waiting_requests": waiting}
        assert pressure_desired(replicas, saw, **AIM) == pytest.approx(wanted)

    def test_shared_out_over_what_it_asks_for_it_asks_for_no_more(self) -> None:
        saw = {"kv_cache_usage": 0.9, "waiting_requests": 2.0}
        wanted = pressure_desired(2, saw, **AIM)
        calmer = {name: value * 2 / wanted for name, value in saw.items()}
        assert pressure_desired(4, calmer, **AIM) <= 4


class TestTTFT:
    @pytest.mark.parametrize(
        ("ttft_ms", "waiting", "wanted"),
        [(750, 0, 3), (9000, 0, 4), (400, 0, 2), (200, 0, 1), (200, 3, 2), (500, 0, 2)],
        ids=["above", "far above", "within", "slack", "slack, but some wait", "on it"],
    )
    def test_two_replicas(self, ttft_ms: float, waiting: float, wanted: float) -> None:
        saw = {"ttft_ms": ttft_ms, "engine_running_requests": 3.0, "waiting_requests": waiting}
        assert ttft_desired(2, saw, ttft_ms=500, slack=0.5) == pytest.approx(wanted)

    def test_the_last_replica_stays_while_anything_runs_and_goes_after(self) -> None:
        busy = {"ttft_ms": 5.0, "engine_running_requests": 1.0, "waiting_requests": 0.0}
        assert ttft_desired(1, busy, ttft_ms=500, slack=0.5) == 1
        idle = busy | {"engine_running_requests": 0.0, "ttft_ms": 9000.0}
        assert ttft_desired(1, idle, ttft_ms=500, slack=0.5) == 0, "an old TTFT of no one"


def context(reported: dict[str, dict[str, float]], **fields: Any) -> Any:
    """The fields of an AutoscalingContext that a policy reads."""
    usual = {
        "aggregated_metrics": reported,
        "running_replicas": ["a", "b"],
        "current_num_replicas": 2,
        "target_num_replicas": 2,
        "total_queued_requests": 0.0,
    }
    return SimpleNamespace(**usual | fields)


class TestFigures:
    def test_means_over_the_running_replicas_that_report(self) -> None:
        told = {
            "kv_cache_usage": {"a": 0.2, "b": 0.6, "stopping": 0.9},
            "waiting_requests": {"a": 3.0, "stopping": 50.0},
        }
        assert mean_figures(context(told)) == {"kv_cache_usage": 0.4, "waiting_requests": 3.0}

    def test_what_waits_in_handles_is_shared_out(self) -> None:
        told = {"waiting_requests": {"a": 1.0, "b": 1.0}}
        saw = mean_figures(context(told, total_queued_requests=6.0))
        assert saw["waiting_requests"] == 4.0

    def test_nothing_reported_is_nothing_known(self) -> None:
        assert mean_figures(context({}, total_queued_requests=6.0)) == {}


TELLING = ("target", "desired", "ttft_ms")


class Told(TTFTPolicy):
    """One that keeps what it would tell, for no cluster is there to hear it."""

    def _tell(self, context: Any, led: Figures) -> None:
        self.led = dict(led)


def asked(policy: Told, target: int, ttft_ms: float | None = None, **fields: Any) -> dict[str, Any]:
    """Serve calls the policy, which goes by `ttft_ms`; the answer is what it told of a change."""
    figures = {"waiting_requests": 3.0, "engine_running_requests": 4.0}
    figures |= {"ttft_p90_ms": ttft_ms} if ttft_ms is not None else {}
    told = {name: {"a": value} for name, value in figures.items()}
    fields = {"current_num_replicas": target} | fields
    policy(context(told, running_replicas=["a"], target_num_replicas=target, **fields))
    return {name: policy.led[name] for name in policy.led if name in TELLING}


class TestWhatLedToAChange:
    def policy(self) -> Told:
        return Told(ttft_ms=200, percentile=90, slack=0.5)

    def test_it_is_what_the_policy_went_by_before_and_stays_until_the_next(self) -> None:
        policy = self.policy()
        assert asked(policy, 1, 170.0) == {"target": 1}
        assert asked(policy, 1, 300.0) == {"target": 1}
        for ttft_ms in (170.0, 90.0, None):
            now = asked(policy, 2, ttft_ms)
            assert now == {"target": 2, "desired": 1.5, "ttft_ms": 300.0}
        assert policy.led["waiting_requests"] == 3

    def test_waking_was_not_asked_for_and_has_no_figures(self) -> None:
        policy = self.policy()
        assert asked(policy, 0, current_num_replicas=0) == {"target": 0}
        # Until its first replica runs, nobody calls it.
        assert asked(policy, 1, 900.0) == {"target": 1}
        assert asked(policy, 2) == {"target": 2, "desired": 2, "ttft_ms": 900.0}

    def test_a_bound_that_takes_the_target_along_has_none(self) -> None:
        policy = self.policy()
        asked(policy, 1, 150.0)
        assert asked(policy, 3, 150.0) == {"target": 3}


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class TestFirstTokens:
    def test_percentiles_of_the_window(self) -> None:
        clock = Time()
        seen = FirstTokens(window_s=10, now=clock)
        for seconds in (0.1, 0.2, 0.3, 0.4):
            seen.add(seconds)
        assert seen.percentiles() == {50: 0.2, 90: 0.4, 99: 0.4}
        clock.now = 11
        seen.add(0.7)
        assert seen.percentiles() == {50: 0.7, 90: 0.7, 99: 0.7}
        clock.now = 22
        assert seen.percentiles() == {}

    def test_a_request_that_waits_longer_than_usual_counts_with_its_age(self) -> None:
        clock = Time()
        seen = FirstTokens(window_s=10, now=clock)
        seen.add(0.5)
        first = seen.begin()
        clock.now = 0.3
        assert seen.percentiles()[99] == 0.5, "no longer than usual so far"
        clock.now = 4.0
        assert seen.percentiles()[99] == 4.0
        seen.dropped(first)
        assert seen.percentiles()[99] == 0.5

    def test_what_was_served_takes_from_its_beginning(self) -> None:
        clock = Time()
        seen = FirstTokens(now=clock)
        one = seen.begin()
        clock.now = 2.5
        seen.served(one)
        seen.served(one)
        assert seen.percentiles()[50] == 2.5


@pytest.mark.parametrize(
    ("status", "kind", "counted"),
    [(200, b"text/event-stream", 1), (200, b"application/json", 0), (429, b"text/event-stream", 0)],
)
def test_only_streamed_answers_are_timed(status: int, kind: bytes, counted: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", kind)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for body in (b"", b"data: 1", b"data: 2"):
            await send({"type": "http.response.body", "body": body, "more_body": True})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    seen = FirstTokens()
    asyncio.run(timed(app, seen)({"type": "http", "method": "POST"}, None, send))
    assert len(seen.percentiles()) == 3 * counted
    assert len(sent) == 4


class TestEngineStats:
    def stats(self, unfinished: int) -> tuple[EngineStats, FirstTokens]:
        first = FirstTokens()
        made = EngineStats(lambda: unfinished, first)
        step = SimpleNamespace(
            num_running_reqs=4, num_waiting_reqs=2, num_skipped_waiting_reqs=1, kv_cache_usage=0.5
        )
        made.record(step, SimpleNamespace(time_to_first_tokens_iter=[0.25]), None, engine_idx=0)
        made.record(None, None)
        return made, first

    def test_the_last_step_counts_while_requests_are_known(self) -> None:
        stats, first = self.stats(unfinished=7)
        wanted = {"engine_running_requests": 4, "waiting_requests": 3, "kv_cache_usage": 0.5}
        assert stats.figures() == wanted
        assert first.percentiles()[50] == 0.25

    def test_after_an_abort_nothing_runs(self) -> None:
        stats, _ = self.stats(unfinished=0)
        assert set(stats.figures().values()) == {0.0}

    def test_a_replica_reports_the_gates_queue_and_the_best_known_ttft(self) -> None:
        stats, engine = self.stats(unfinished=7)
        before_gate = FirstTokens()
        gate: Any = SimpleNamespace(slots=SimpleNamespace(queued=5))
        told = reported(stats.figures(), [before_gate, engine], gate)
        assert told["waiting_requests"] == 8
        assert told["ttft_p90_ms"] == 250
        before_gate.add(1.5)
        told = reported(stats.figures(), [before_gate, engine], gate)
        assert told["ttft_p90_ms"] == 1500

    def test_serves_own_count_is_not_written_over(self) -> None:
        """Serve merges what a replica reports into its own metrics, by name."""
        stats, first = self.stats(unfinished=7)
        common = source("ray", "serve", "_private", "common.py")
        assert 'RUNNING_REQUESTS_KEY = "running_requests"' in common
        assert "running_requests" not in reported(stats.figures(), [first], None)

    def test_the_installed_vllm_calls_it_so(self) -> None:
        stats = source("vllm", "v1", "metrics", "stats.py")
        names = ("num_running_reqs", "num_waiting_reqs", "num_skipped_waiting_reqs")
        for name in (*names, "kv_cache_usage", "time_to_first_tokens_iter"):
            assert f"{name}:" in stats
        client = source("vllm", "v1", "engine", "async_llm.py")
        assert "self.logger_manager" in client
        assert "self.output_processor" in client


def test_the_policies_need_nothing_of_ours_where_serve_runs_them() -> None:
    """Serve pickles their module by value into a controller that may lack our packages."""
    import ast
    from pathlib import Path

    from serving.deploy import autoscaling

    tree = ast.parse(Path(str(autoscaling.__file__)).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    packages = {str(node.module).partition(".")[0] for node in imports}
    assert packages == {"__future__", "collections", "types", "typing", "ray"}
