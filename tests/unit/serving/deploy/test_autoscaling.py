"""Autoscaling policies: their arithmetic, and what they export on Ray Serve's own interface."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.deploy import autoscaling
from serving.deploy.autoscaling import (
    Figures,
    TTFTPolicy,
    mean_figures,
    pressure_desired,
    ttft_desired,
)
from serving.deploy.deployments import autoscaling_config
from serving.errors import SpecError
from serving.spec.scaling import EnginePressure, Requests, ScalingSpec, TTFTTarget

TARGETS = {"kv_cache_usage": 0.5, "waiting_requests": 4.0}


class TestSpec:
    def test_serves_own_policy_is_the_default(self) -> None:
        assert ScalingSpec().policy == Requests()
        assert "policy" not in autoscaling_config(ScalingSpec())

    def test_a_policy_is_given_by_path_with_its_parameters(self) -> None:
        scaling = ScalingSpec(policy=EnginePressure(kv_cache_usage=0.5))
        assert autoscaling_config(scaling)["policy"] == {
            "policy_function": "serving.deploy.autoscaling.EnginePressurePolicy",
            "policy_kwargs": {"kv_cache_usage": 0.5, "waiting_requests": 4},
        }

    def test_plain_data_is_distinguished_by_its_kind(self) -> None:
        given = {"kind": "ttft_target", "ttft_ms": 300}
        assert ScalingSpec(policy=given).policy == TTFTTarget(ttft_ms=300)

    @pytest.mark.parametrize(
        ("policy", "name"),
        [
            ({"kind": "engine_pressure", "kv_cache_usage": 1.5}, "kv_cache_usage"),
            ({"kind": "ttft_target"}, "ttft_ms"),
            ({"kind": "ttft_target", "ttft_ms": 1, "waiting_requests": 2}, "waiting_requests"),
            ({"kind": "moon_phase"}, "moon_phase"),
        ],
    )
    def test_an_invalid_policy_is_rejected(self, policy: dict[str, Any], name: str) -> None:
        with pytest.raises(SpecError, match=name):
            ScalingSpec(policy=policy)


class TestPressure:
    @pytest.mark.parametrize(
        ("replicas", "kv", "waiting", "desired"),
        [
            (1, 0.25, 0, 0.5),
            (2, 0.5, 0, 2),
            (2, 0.75, 0, 3),
            (1, 0.0, 8, 2),
            (2, 0.9, 2, 3.6),
            (3, 0.0, 0, 0),
        ],
    )
    def test_the_larger_of_cache_and_queue_counts_in_proportion(
        self, replicas: int, kv: float, waiting: float, desired: float
    ) -> None:
        figures = {"kv_cache_usage": kv, "waiting_requests": waiting}
        assert pressure_desired(replicas, figures, **TARGETS) == pytest.approx(desired)

    def test_the_desired_replicas_ask_for_no_more(self) -> None:
        figures = {"kv_cache_usage": 0.9, "waiting_requests": 2.0}
        desired = pressure_desired(2, figures, **TARGETS)
        shared = {name: value * 2 / desired for name, value in figures.items()}
        assert pressure_desired(4, shared, **TARGETS) <= 4


class TestTTFT:
    @pytest.mark.parametrize(
        ("ttft_ms", "waiting", "desired"),
        [(750, 0, 3), (9000, 0, 4), (400, 0, 2), (200, 0, 1), (200, 3, 2), (500, 0, 2)],
        ids=["above", "far above", "within", "slack", "slack, but some wait", "equal"],
    )
    def test_two_replicas(self, ttft_ms: float, waiting: float, desired: float) -> None:
        figures = {"ttft_ms": ttft_ms, "engine_running_requests": 3.0, "waiting_requests": waiting}
        assert ttft_desired(2, figures, ttft_ms=500, slack=0.5) == pytest.approx(desired)

    def test_the_last_replica_stays_while_anything_runs(self) -> None:
        busy = {"ttft_ms": 5.0, "engine_running_requests": 1.0, "waiting_requests": 0.0}
        assert ttft_desired(1, busy, ttft_ms=500, slack=0.5) == 1
        idle = busy | {"engine_running_requests": 0.0, "ttft_ms": 9000.0}
        assert ttft_desired(1, idle, ttft_ms=500, slack=0.5) == 0, "an old TTFT does not count"


def context(reported: dict[str, dict[str, float]], **fields: Any) -> Any:
    """The fields of an AutoscalingContext that a policy reads."""
    defaults = {
        "aggregated_metrics": reported,
        "running_replicas": ["a", "b"],
        "current_num_replicas": 2,
        "target_num_replicas": 2,
        "total_queued_requests": 0.0,
    }
    return SimpleNamespace(**defaults | fields)


class TestFigures:
    def test_they_are_means_over_the_running_replicas_that_report(self) -> None:
        reported = {
            "kv_cache_usage": {"a": 0.2, "b": 0.6, "stopping": 0.9},
            "waiting_requests": {"a": 3.0, "stopping": 50.0},
        }
        assert mean_figures(context(reported)) == {"kv_cache_usage": 0.4, "waiting_requests": 3.0}

    def test_requests_in_handles_are_divided_by_the_replicas(self) -> None:
        reported = {"waiting_requests": {"a": 1.0, "b": 1.0}}
        figures = mean_figures(context(reported, total_queued_requests=6.0))
        assert figures["waiting_requests"] == 4.0

    def test_without_reports_there_are_none(self) -> None:
        assert mean_figures(context({}, total_queued_requests=6.0)) == {}


SHOWN = ("target", "desired", "ttft_ms")


class RecordingPolicy(TTFTPolicy):
    """Keeps what it would export: there is no cluster."""

    def _export(self, context: Any, cause: Figures) -> None:
        self.cause = dict(cause)


def call(
    policy: RecordingPolicy, target: int, ttft_ms: float | None = None, **fields: Any
) -> dict[str, Any]:
    """Call the policy as Serve does, with this TTFT; return what it exports of the last change."""
    figures = {"waiting_requests": 3.0, "engine_running_requests": 4.0}
    figures |= {"ttft_p90_ms": ttft_ms} if ttft_ms is not None else {}
    reported = {name: {"a": value} for name, value in figures.items()}
    fields = {"current_num_replicas": target} | fields
    policy(context(reported, running_replicas=["a"], target_num_replicas=target, **fields))
    return {name: policy.cause[name] for name in policy.cause if name in SHOWN}


class TestCauseOfAChange:
    def policy(self) -> RecordingPolicy:
        return RecordingPolicy(ttft_ms=200, percentile=90, slack=0.5)

    def test_it_is_what_the_policy_used_before_and_stays_until_the_next_change(self) -> None:
        policy = self.policy()
        assert call(policy, 1, 170.0) == {"target": 1}
        assert call(policy, 1, 300.0) == {"target": 1}
        for ttft_ms in (170.0, 90.0, None):
            cause = call(policy, 2, ttft_ms)
            assert cause == {"target": 2, "desired": 1.5, "ttft_ms": 300.0}
        assert policy.cause["waiting_requests"] == 3

    def test_waking_a_deployment_has_none(self) -> None:
        policy = self.policy()
        assert call(policy, 0, current_num_replicas=0) == {"target": 0}
        # Nobody calls the policy until the first replica runs.
        assert call(policy, 1, 900.0) == {"target": 1}
        assert call(policy, 2) == {"target": 2, "desired": 2, "ttft_ms": 900.0}

    def test_a_bound_that_moves_the_target_has_none(self) -> None:
        policy = self.policy()
        call(policy, 1, 150.0)
        assert call(policy, 3, 150.0) == {"target": 3}


def test_the_module_imports_nothing_of_this_project() -> None:
    """Serve pickles it by value into a controller that may be unable to import the project."""
    tree = ast.parse(Path(str(autoscaling.__file__)).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    packages = {str(node.module).partition(".")[0] for node in imports}
    assert packages == {"__future__", "collections", "types", "typing", "ray"}
