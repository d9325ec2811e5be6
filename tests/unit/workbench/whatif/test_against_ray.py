"""The port of Ray Serve's autoscaling takes the same decisions as Ray Serve's own classes."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.serve import autoscaling_policy
from ray.serve._private import autoscaling_metrics_codec as codec
from ray.serve._private import autoscaling_state, common, constants, metrics_utils
from ray.serve._private.autoscaling_state import DeploymentAutoscalingState
from ray.serve.config import AutoscalingConfig

from serving.deploy.deployments import autoscaling_config
from serving.spec.scaling import ScalingSpec
from workbench.whatif import autoscaler, reports

DEPLOYMENT = common.DeploymentID("model", "app")
CLOCK = SimpleNamespace(now=0.0)
SLOTS = 8
HANDLE = SLOTS


@pytest.fixture(autouse=True)
def virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(time=lambda: CLOCK.now, monotonic=lambda: CLOCK.now)
    for module in (autoscaling_state, autoscaling_policy):
        monkeypatch.setattr(module, "time", clock)


class Upstream:
    """Ray Serve's state of a deployment, and the metric stores of its replicas and its handle."""

    def __init__(self, scaling: ScalingSpec) -> None:
        config = AutoscalingConfig(**autoscaling_config(scaling))
        self.state = DeploymentAutoscalingState(DEPLOYMENT)
        info = SimpleNamespace(
            deployment_config=SimpleNamespace(
                autoscaling_config=config, gang_scheduling_config=None
            ),
            target_capacity=None,
            target_capacity_direction=None,
        )
        self.target = self.state.register(info, scaling.min_replicas)
        self.look_back_s = scaling.look_back_period_s
        self.stores = [metrics_utils.InMemoryMetricsStore() for _ in range(SLOTS + 1)]
        self.starts = [0] * SLOTS

    def replica(self, slot: int) -> Any:
        return common.ReplicaID(f"slot{slot}-{self.starts[slot]}", DEPLOYMENT)

    def record(self, row: int, value: float) -> None:
        store = self.stores[row]
        store.add_metrics_point({"count": value}, CLOCK.now)
        store.prune_keys_and_compact_data(CLOCK.now - self.look_back_s)

    def points(self, row: int) -> list[Any]:
        store = self.stores[row]
        store.prune_keys_and_compact_data(CLOCK.now - self.look_back_s)
        return list(store.data.get("count", []))

    def report_replica(self, slot: int) -> None:
        metrics = {common.RUNNING_REQUESTS_KEY: self.points(slot)}
        report = common.ReplicaMetricReport(self.replica(slot), metrics, CLOCK.now)
        self.state.record_request_metrics_for_replica(report)

    def report_handle(self, slots: list[int]) -> None:
        running = {self.replica(slot).to_full_id_str(): self.points(slot) for slot in slots}
        report = common.HandleMetricReport(
            deployment_id=DEPLOYMENT,
            handle_id="handle",
            actor_id="actor",
            handle_source=common.DeploymentHandleSource.REPLICA,
            queued_requests=self.points(HANDLE),
            metrics={common.RUNNING_REQUESTS_KEY: running},
            timestamp=CLOCK.now,
        )
        payload = codec.decode_handle_flat(codec.encode(report))
        self.state.record_columnar_metrics_for_handle(payload)

    def decide(self, running: list[int]) -> tuple[float, int]:
        self.state.update_running_replica_ids([self.replica(slot) for slot in running])
        self.target = self.state.get_decision_num_replicas(self.target)
        return self.state.get_last_decision_total_num_requests(), self.target

    def forget(self, slot: int) -> None:
        self.stores[slot] = metrics_utils.InMemoryMetricsStore()
        self.state.on_replica_stopped(self.replica(slot))
        self.starts[slot] += 1


class Port:
    """The same with the functions of the simulator."""

    def __init__(self, scaling: ScalingSpec) -> None:
        to_zero_s = scaling.downscale_to_zero_delay_s
        self.bounds = autoscaler.Bounds(
            scaling.min_replicas,
            scaling.max_replicas,
            scaling.upscale_delay_s,
            scaling.downscale_delay_s,
            scaling.downscale_delay_s if to_zero_s is None else to_zero_s,
        )
        self.per_replica, self.target = scaling.target_ongoing_requests, scaling.min_replicas
        self.look_back_s = scaling.look_back_period_s
        room = reports.points_needed(self.look_back_s, record_interval_s(scaling))
        self.series = reports.empty_series(SLOTS + 1, room)
        self.delays = np.zeros(2)

    def record(self, row: int, value: float) -> None:
        reports.record(self.series, row, CLOCK.now, value, self.look_back_s)

    def report(self, rows: list[int]) -> None:
        for row in rows:
            reports.report(self.series, row, CLOCK.now, self.look_back_s)

    def decide(self, rows: list[int], running: int) -> tuple[float, int]:
        added = reports.total_of(self.series, np.array(rows, np.int64))
        total = reports.mean_total(added, CLOCK.now)
        desired = autoscaler.desired_for(total, running, self.target, self.per_replica)
        now, target = CLOCK.now, self.target
        self.target = autoscaler.decide(
            self.bounds, self.delays, now, total, desired, running, target
        )
        return total, self.target


def record_interval_s(scaling: ScalingSpec) -> float:
    factor = constants.RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR
    return float(min(factor * scaling.look_back_period_s, scaling.metrics_interval_s))


def test_the_constants_are_those_of_ray_serve() -> None:
    assert constants.CONTROL_LOOP_INTERVAL_S == autoscaler.TICK_S
    factor = constants.RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR
    assert factor == reports.RECORD_FACTOR
    assert autoscaling_policy._DELAY_ELAPSED_EPS_S == autoscaler.DELAY_TOLERANCE_S


def random_scaling(rng: np.random.Generator) -> ScalingSpec:
    least = int(rng.integers(0, 3))
    return ScalingSpec(
        min_replicas=least,
        max_replicas=least + int(rng.integers(1, 5)),
        # A whole target is the rule. Any other has no ties, which rounding decides in Ray Serve.
        target_ongoing_requests=float(rng.choice([1, 2, 4, rng.uniform(0.5, 6)])),
        upscale_delay_s=float(rng.choice([0, 0.5, 3])),
        downscale_delay_s=float(rng.choice([0, 2, 6])),
        downscale_to_zero_delay_s=None if rng.random() < 0.5 else float(rng.uniform(0, 8)),
        metrics_interval_s=float(rng.choice([0.5, 1, 2])),
        look_back_period_s=float(rng.choice([3, 5, 10])),
    )


class Both:
    """Ray Serve and the port, which get the same points and reports."""

    def __init__(self, path: str, scaling: ScalingSpec, rng: np.random.Generator) -> None:
        self.path, self.scaling, self.rng = path, scaling, rng
        self.upstream, self.port = Upstream(scaling), Port(scaling)
        self.record_s = record_interval_s(scaling)
        self.running = list(range(scaling.min_replicas))
        # The next point and the next report of each source.
        self.due = [rng.uniform(1000, 1000 + self.record_s) for _ in range(SLOTS + 1)]
        self.report_due = [at_s + scaling.metrics_interval_s for at_s in self.due]

    def sources(self) -> list[int]:
        return [*self.running, HANDLE] if self.path == "composed" else self.running

    def record(self, now: float, load: float) -> None:
        for row in range(SLOTS + 1):
            if self.due[row] > now:
                continue
            CLOCK.now = self.due[row]
            self.due[row] += self.record_s
            shared = 0.8 * load / len(self.running) if self.running else load
            value = float(self.rng.poisson(shared))
            if row in self.sources():
                self.upstream.record(row, value)
                self.port.record(row, value)

    def report(self, now: float) -> None:
        for row in range(SLOTS + 1):
            if self.report_due[row] > now:
                continue
            CLOCK.now = self.report_due[row]
            self.report_due[row] += self.scaling.metrics_interval_s
            if self.path == "direct" and row in self.running:
                self.upstream.report_replica(row)
                self.port.report([row])
            elif self.path == "composed" and row == HANDLE:
                self.upstream.report_handle(self.running)
                self.port.report(self.sources())

    def scale(self) -> None:
        """Let the replicas follow the target; each start takes a while."""
        for slot in self.running[self.port.target :]:
            self.upstream.forget(slot)
            reports.clear(self.port.series, slot)
        self.running = self.running[: self.port.target]
        if len(self.running) < self.port.target and self.rng.random() < 0.05:
            free = [slot for slot in range(SLOTS) if slot not in self.running]
            self.running.append(free[0])


@pytest.mark.parametrize("path", ["direct", "composed"])
@pytest.mark.parametrize("seed", range(8))
def test_every_decision_is_the_same_on_a_random_trace(path: str, seed: int) -> None:
    rng = np.random.default_rng([seed, path == "composed"])
    both = Both(path, random_scaling(rng), rng)
    load, decisions = 20.0, set()
    for number in range(1500):
        now = 1000 + number * autoscaler.TICK_S
        load = float(rng.choice([0, 0, 3, 8, 20, 40])) if rng.random() < 0.01 else load
        both.scale()
        both.record(now, load)
        both.report(now)
        CLOCK.now = now
        expected, wanted = both.upstream.decide(both.running)
        total, target = both.port.decide(both.sources(), len(both.running))
        assert total == pytest.approx(expected, rel=1e-9, abs=1e-9)
        if not is_tie(total / both.port.per_replica):
            assert target == wanted, (now, total)
        decisions.add(target)
    assert len(decisions) > 1


def is_tie(desired: float) -> bool:
    """Whether rounding decides between two numbers of replicas."""
    return desired > 0 and math.isclose(desired, round(desired), rel_tol=1e-9)


def test_a_constant_count_asks_for_the_same_replicas_forever() -> None:
    scaling = ScalingSpec(max_replicas=4, target_ongoing_requests=5)
    port = Port(scaling)
    for step in range(60):
        CLOCK.now = 0.7 + 2 * step
        for slot in (0, 1):
            port.record(slot, 5.0)
        port.report([0, 1])
        for tick in range(20):
            CLOCK.now = 0.7 + 2 * step + tick * autoscaler.TICK_S
            added = reports.total_of(port.series, np.array([0, 1]))
            desired = autoscaler.desired_for(
                reports.mean_total(added, CLOCK.now), 2, 2, port.per_replica
            )
            assert math.ceil(desired - autoscaler.ROUNDING) == 2
