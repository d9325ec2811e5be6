"""Replica-seconds and dollars, compared with sums counted by hand for small timelines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.records import failed, record

from serving.errors import SpecError
from serving.spec.guardrail import PresidioGuardrail
from serving.spec.model import ModelSpec
from serving.spec.pipeline import PipelineSpec
from serving.spec.router import RouterSpec
from serving.spec.service import ServiceSpec
from workbench.cost.cost import CostMeter, GoodTokens, cost_of, with_cost
from workbench.cost.prices import NodePrice, Prices
from workbench.cost.replica_seconds import MAX_GAP_S, ReplicaSecondsMeter, replica_seconds_of
from workbench.cost.series import CostSeries, cost_rows
from workbench.errors import RunError, SettingError
from workbench.metrics.slo import SLO
from workbench.metrics.summary import summarize
from workbench.records import DeploymentSample, GpuSample, ReplicaSample, Sample
from workbench.runs.run import Run

NAME = "tiny-llama-glossary"
"""The deployment of a ServiceSpec of the embedded model."""


def moment(
    at_s: float,
    running: int,
    starting: int = 0,
    stopping: int = 0,
    *,
    requests: list[int | None] | None = None,
    name: str = NAME,
) -> list[Sample]:
    """A sample of a deployment, and one per running replica with its number of `requests`."""
    counts = {"running": running, "starting": starting, "stopping": stopping}
    samples: list[Sample] = [DeploymentSample(time_s=at_s, deployment=name, **counts)]
    for i, number in enumerate(requests or []):
        replica: dict[str, Any] = {"deployment": name, "replica": f"{name}#{i}", "node": "n"}
        samples.append(ReplicaSample(time_s=at_s, running_requests=number, **replica))
    return samples


# One replica is busy from 0 to 2 and idle from 2 to 3. At 3 a second one starts, which runs from 5.
# Both are busy until 7, the first alone until 9, while the second one stops from 8 to 9.
TIMELINE = [
    *moment(0, 1, requests=[3]),
    *moment(1, 1, requests=[1]),
    *moment(2, 1, requests=[0]),
    *moment(3, 1, 1, requests=[8]),
    *moment(4, 1, 1, requests=[8]),
    *moment(5, 2, requests=[5, 3]),
    *moment(6, 2, requests=[4, 4]),
    *moment(7, 2, requests=[1, 0]),
    *moment(8, 1, 0, 1, requests=[1]),
    *moment(9, 1, requests=[0]),
]
BUSY = 2 + 2 + 4 + 1 + 1  # 0-2, 3-5, two from 5 to 7, one from 7 to 8, one from 8 to 9
IDLE = 1 + 1  # 2-3, the second one from 7 to 8
STARTING, STOPPING = 2, 1


def saved(root: Path, samples: list[Sample], records: list[Any] = []) -> Run:  # noqa: B006
    run = Run.create(root, {}, run_id="r")
    for sample in samples:
        run.append_telemetry(sample)
    for request in records:
        run.append_request(request)
    return run


class TestReplicaSeconds:
    def test_timeline_counted_by_hand(self) -> None:
        found = replica_seconds_of(TIMELINE).seconds()[NAME]
        assert found.busy == pytest.approx(BUSY)
        assert found.idle == pytest.approx(IDLE)
        assert found.starting == pytest.approx(STARTING)
        assert found.stopping == pytest.approx(STOPPING)
        assert found.unknown == 0
        assert found.total == pytest.approx(BUSY + IDLE + STARTING + STOPPING)

    def test_seconds_so_far_equal_those_of_the_samples_so_far(self) -> None:
        meter = ReplicaSecondsMeter()
        for number, sample in enumerate(TIMELINE, 1):
            meter.observe(sample)
            assert meter.seconds() == replica_seconds_of(TIMELINE[:number]).seconds()
        assert meter.replicas() == {NAME: 1}

    def test_samples_from_a_file(self, tmp_path: Path) -> None:
        run = saved(tmp_path, TIMELINE)
        assert replica_seconds_of(run.samples()).seconds() == replica_seconds_of(TIMELINE).seconds()

    def test_window_limits_what_counts_and_the_last_state_holds(self) -> None:
        found = replica_seconds_of(TIMELINE, start_s=1.5, end_s=11.0).seconds()[NAME]
        assert found.busy == pytest.approx(BUSY - 1.5)
        assert found.idle == pytest.approx(IDLE + 2)  # from 9 to 11
        assert found.total == pytest.approx(BUSY + IDLE + STARTING + STOPPING - 1.5 + 2)

    def test_only_the_given_deployments_count(self) -> None:
        other = moment(0, 5, name="router") + moment(1, 5, name="router")
        mixed = sorted(TIMELINE + other, key=lambda sample: sample.time_s)
        assert replica_seconds_of(mixed, [NAME]).seconds() == replica_seconds_of(TIMELINE).seconds()
        assert replica_seconds_of(mixed).seconds()["router"].unknown == 5

    def test_a_gap_counts_as_unknown(self) -> None:
        gap = MAX_GAP_S + 1
        samples = [*moment(0, 2, 1, requests=[1, 0]), *moment(gap, 2), *moment(gap + 1, 0)]
        found = replica_seconds_of(samples).seconds()[NAME]
        assert (found.busy, found.idle, found.starting) == (0, 0, 0)
        assert found.unknown == pytest.approx(3 * gap + 2 * 1)

    def test_an_interval_up_to_the_limit_is_no_gap(self) -> None:
        samples = [*moment(0, 1, requests=[1]), *moment(MAX_GAP_S, 0)]
        assert replica_seconds_of(samples).seconds()[NAME].busy == MAX_GAP_S

    def test_an_engine_without_figures_is_unknown(self) -> None:
        samples = [*moment(0, 3, requests=[2, None]), *moment(1, 3)]
        found = replica_seconds_of(samples).seconds()[NAME]
        assert (found.busy, found.idle, found.unknown) == (1, 0, 2)

    def test_a_waiting_request_makes_a_replica_busy(self) -> None:
        fields: dict[str, Any] = {"deployment": NAME, "replica": "a", "node": "n"}
        one = ReplicaSample(time_s=0, running_requests=0, waiting_requests=2, **fields)
        found = replica_seconds_of([moment(0, 1)[0], one, *moment(1, 0)]).seconds()[NAME]
        assert (found.busy, found.idle) == (1, 0)

    def test_a_starting_replica_is_not_busy(self) -> None:
        fields: dict[str, Any] = {
            "deployment": NAME,
            "replica": "a",
            "node": "n",
            "state": "starting",
        }
        one = ReplicaSample(time_s=0, running_requests=0, **fields)
        found = replica_seconds_of([moment(0, 0, 1)[0], one, *moment(1, 0)]).seconds()[NAME]
        assert (found.starting, found.total) == (1, 1)

    def test_a_sample_without_counts_is_ignored(self) -> None:
        empty = DeploymentSample(time_s=1, deployment=NAME, target=1)
        found = replica_seconds_of([*moment(0, 1, requests=[1]), empty, *moment(2, 0)]).seconds()[
            NAME
        ]
        assert found.busy == 2

    def test_energy_of_the_gpus_on_nodes_with_a_replica(self) -> None:
        def card(at_s: float, power: float | None, node: str = "n") -> GpuSample:
            return GpuSample(time_s=at_s, node=node, gpu=0, power_w=power)

        samples = [*moment(0, 1, requests=[1]), card(0, 300), card(0, 700, "other")]
        samples += [*moment(2, 1, requests=[1]), card(2, 600), card(2, 700, "other")]
        samples += [*moment(3, 1, requests=[0]), card(3, 100)]
        # 300 W for 2 s and 600 W for 1 s; the other node holds no replica of ours.
        assert replica_seconds_of(samples).energy_kwh() == pytest.approx(1200 / 3.6e6)
        assert replica_seconds_of(TIMELINE).energy_kwh() is None
        assert replica_seconds_of([*moment(0, 1, requests=[1]), card(0, None)]).energy_kwh() is None


class TestPrices:
    def test_by_resource(self) -> None:
        cpu = ModelSpec(num_cpus=3, tensor_parallel_size=2)
        assert Prices(cpu_hour=0.5).replica_hour(cpu) == pytest.approx(3)
        gpu = ModelSpec(accelerator="gpu", num_cpus=2, num_gpus=0.25)
        assert Prices(gpu_hour=4, cpu_hour=0.5).replica_hour(gpu) == pytest.approx(4 / 4 + 2 * 0.5)
        assert Prices(gpu_hour=4).replica_hour(gpu) == pytest.approx(1)

    def test_by_type(self) -> None:
        prices = Prices(gpu_hour=1, gpu_hour_by_type={"H100": 3})
        model = {"accelerator": "gpu", "pipeline_parallel_size": 2}
        assert prices.replica_hour(ModelSpec(**model, accelerator_type="H100")) == 6
        assert prices.replica_hour(ModelSpec(**model, accelerator_type="L4")) == 2
        assert prices.replica_hour(ModelSpec(**model)) == 2

    def test_by_share_of_a_node(self) -> None:
        prices = Prices(node=NodePrice(hour=24, cpus=96, gpus=8))
        gpu = ModelSpec(accelerator="gpu", tensor_parallel_size=2, num_cpus=1)
        assert prices.replica_hour(gpu) == pytest.approx(24 * 2 / 8)
        assert prices.replica_hour(gpu.model_copy(update={"num_cpus": 24})) == pytest.approx(12)
        assert prices.replica_hour(ModelSpec(num_cpus=48)) == pytest.approx(12)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({}, "Prices has no price: give gpu_hour, cpu_hour or node"),
            ({"energy_kwh": 0.3}, "Prices has no price"),
            ({"gpu_hour": -1}, "Prices.gpu_hour must be greater than or equal to 0, got -1"),
            ({"cpu_hour": float("nan")}, "Prices.cpu_hour must be a finite number, got nan"),
            ({"cpu_hours": 1}, "did you mean 'cpu_hour'?"),
            ({"cpu_hour": 1, "node": {"hour": 1, "cpus": 1}}, "bill the same twice"),
            (
                {"cpu_hour": 1, "output_weight": 0},
                "Prices.output_weight must be greater than 0, got 0",
            ),
        ],
    )
    def test_bad_prices(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(SpecError) as caught:
            Prices(**fields)
        assert message in str(caught.value)

    @pytest.mark.parametrize(
        ("prices", "model", "message"),
        [
            (Prices(cpu_hour=1), {"accelerator": "gpu"}, "prices.gpu_hour is missing, and"),
            (Prices(gpu_hour=1), {}, "prices.cpu_hour is missing, and"),
            (
                Prices(gpu_hour_by_type={"L4": 1}),
                {"accelerator": "gpu", "accelerator_type": "H100"},
                "runs on type 'H100'",
            ),
            (Prices(node=NodePrice(hour=1, cpus=8)), {"accelerator": "gpu"}, "node.gpus is 0"),
        ],
    )
    def test_a_missing_price(self, prices: Prices, model: dict[str, Any], message: str) -> None:
        with pytest.raises(SettingError) as caught:
            prices.replica_hour(ModelSpec(**model))
        assert message in str(caught.value)

    def test_a_pipeline_pays_for_guardrail_and_router(self) -> None:
        guardrail, router = PresidioGuardrail(num_cpus=2), RouterSpec(num_cpus=0.5)
        models = (ModelSpec(id="a"), ModelSpec(id="org/b.c", num_cpus=4))
        spec = PipelineSpec(models=models, guardrail=guardrail, router=router)
        assert Prices(cpu_hour=1).per_replica_hour(spec) == {
            "a": 1,
            "org--b_c": 4,
            "guardrail": 2,
            "router": 0.5,
        }


class TestCost:
    SPEC = ServiceSpec(model=ModelSpec(num_cpus=2))
    PRICES = Prices(cpu_hour=1.8, output_weight=4)  # 3.6 $ an hour a replica: 0.001 $ a second

    def records(self) -> list[Any]:
        """Two good requests with 10 + 3 tokens, a late one, a shed one, and one after the end."""
        late = record(2.0, 8.0, 8.1, prompt_tokens=500)
        good = [record(at, at + 0.1, at + 0.2, at + 0.3) for at in (0.5, 1.0)]
        return [*good, late, failed("shed", 3.0, 3.1), record(20.0, 20.1, 20.2)]

    def test_dollars_counted_by_hand(self, tmp_path: Path) -> None:
        run = saved(tmp_path, TIMELINE, self.records())
        cost = cost_of(run, self.SPEC, self.PRICES, slo=SLO(ttft_ms=1000), end_s=9.0)
        assert cost.held_s == BUSY + IDLE + STARTING + STOPPING == 15
        assert cost.dollars == pytest.approx(0.015)
        assert cost.dollars_per_hour == pytest.approx(3.6)
        assert (cost.good_requests, cost.input_tokens, cost.output_tokens) == (2, 20, 6)
        assert cost.per_million_tokens == pytest.approx(0.015 / 26 * 1e6)
        assert cost.per_million_input_tokens == pytest.approx(0.015 / (20 + 4 * 6) * 1e6)
        assert cost.per_million_output_tokens == pytest.approx(4 * 0.015 / 44 * 1e6)

    def test_the_split_adds_up_to_the_dollars(self, tmp_path: Path) -> None:
        run = saved(tmp_path, TIMELINE, self.records())
        cost = cost_of(run, self.SPEC, self.PRICES)
        assert cost.per_million_input_tokens is not None
        assert cost.per_million_output_tokens is not None
        dollars = cost.per_million_input_tokens * cost.input_tokens
        dollars += cost.per_million_output_tokens * cost.output_tokens
        assert dollars / 1e6 == pytest.approx(cost.dollars)

    def test_without_good_tokens_there_is_no_price_per_token(self, tmp_path: Path) -> None:
        run = saved(tmp_path, TIMELINE, self.records())
        cost = cost_of(run, self.SPEC, self.PRICES, slo=SLO(ttft_ms=1))
        assert cost.dollars == pytest.approx(0.015)
        assert cost.per_million_tokens is None
        assert cost.per_million_output_tokens is None

    def test_energy_costs_only_if_it_has_a_price(self, tmp_path: Path) -> None:
        watts = [GpuSample(time_s=at, node="n", gpu=0, power_w=3.6e6) for at in (0.0, 2.0)]
        samples = [*moment(0, 1, requests=[1]), watts[0], *moment(2, 1, requests=[0]), watts[1]]
        run = saved(tmp_path, samples)
        free = cost_of(run, self.SPEC, self.PRICES)
        assert free.energy_kwh == pytest.approx(2)
        assert free.energy_dollars is None
        paid = cost_of(run, self.SPEC, Prices(cpu_hour=1.8, energy_kwh=0.25))
        assert paid.energy_dollars == pytest.approx(0.5)
        assert paid.dollars == pytest.approx(free.dollars + 0.5)

    def test_live_and_saved_agree(self, tmp_path: Path) -> None:
        meter = CostMeter(self.PRICES.per_replica_hour(self.SPEC), self.PRICES)
        for sample in TIMELINE:
            meter.observe(sample)
        meter.add_tokens(GoodTokens(requests=2, input_tokens=20, output_tokens=6))
        run = saved(tmp_path, TIMELINE, self.records()[:2])
        assert meter.now() == cost_of(run, self.SPEC, self.PRICES)

    def test_cost_in_the_summary(self, tmp_path: Path) -> None:
        run = saved(tmp_path, TIMELINE, self.records())
        cost = cost_of(run, self.SPEC, self.PRICES)
        run.finish(with_cost(summarize(run.records()), cost))
        kept = run.summary()
        assert kept is not None
        assert kept.cost == cost.model_dump(mode="json")
        assert json.loads((run.path / "summary.json").read_text())["cost"]["dollars"] > 0

    def test_a_line_that_is_not_a_sample(self, tmp_path: Path) -> None:
        run = saved(tmp_path, [])
        run.append_telemetry({"kind": "deployment", "time_s": "now", "deployment": "d"})
        with pytest.raises(RunError, match="is not a sample"):
            list(run.samples())


class TestSeries:
    SPEC, PRICES = TestCost.SPEC, TestCost.PRICES

    def test_rows_counted_by_hand(self) -> None:
        """A replica costs $0.001 per second. The good request has 12 tokens.

        It ends at 1.5 s, before the sample that completes the row of 1 s.
        """
        good, late = record(0.0, 0.5, 1.5), record(0.0, 1.2, 1.4)
        samples = [s for at in range(4) for s in moment(at, 1, requests=[1])]
        series = CostSeries(self.SPEC, self.PRICES, slo=SLO(ttft_ms=1000))
        frame = cost_rows(series, samples, [good, late, failed("shed", 0.0, 0.1)])
        assert frame.time_s.tolist() == [0, 1, 2], "the last moment may not be complete"
        assert frame.per_hour.tolist() == pytest.approx([3.6] * 3)
        assert frame.so_far.tolist() == pytest.approx([0, 0.001, 0.002])
        assert frame.per_million.isna().tolist() == [True, False, False]
        assert frame.per_million[1:].tolist() == pytest.approx([1e3 / 12, 2e3 / 12])

    def test_without_prices_there_are_no_rows(self) -> None:
        assert cost_rows(CostSeries(self.SPEC, None), TIMELINE, [record(0.0, 0.1)]).empty
