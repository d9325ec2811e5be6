"""Several nodes on this machine with two real engines: placement, and failures under load.

Expected values come from Serve, the process table, each engine's own counters, and the records of
the requests that were sent.

`make test-nodes` runs this in a separate process: a process joins only one cluster, and the other
tests share theirs.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import _faults as faults
from _faults import Outcome, Target
from _nodes import left_over, nodes

import workbench as wb
from serving.errors import ResourcesError
from workbench.clock import start_clock
from workbench.runs.run import Run
from workbench.telemetry.sampler import Telemetry

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1500)]

# `spare` has room for the replica of a node that dies. Its GPUs exist only as a resource.
WORKERS: dict[str, dict[str, Any]] = {
    "one": {"num_cpus": 1},
    "two": {"num_cpus": 1},
    "spare": {"num_cpus": 1, "num_gpus": 4},
}


@pytest.fixture(scope="module")
def stage() -> Iterator[Target]:
    """One deployment for all tests; at the end no process of the cluster may be left."""
    before = set(psutil.pids())
    with nodes(WORKERS) as cluster:
        with wb.deploy(faults.service_spec(), address=cluster.address) as endpoint:
            yield Target(cluster, endpoint)
        engines = [p.name() for p in cluster.processes("VLLM::EngineCore")]
        assert engines == [], "an engine still runs after its service was deleted"
    assert [p.name() for p in left_over(before, within_s=60)] == []


class TestNodes:
    def test_each_replica_is_on_its_own_node(self, stage: Target) -> None:
        replica_nodes = [replica.node for replica in stage.replicas()]
        assert len(replica_nodes) == len(set(replica_nodes)) == 2
        assert "head" not in replica_nodes

    def test_load_workers_avoid_replicas_and_every_node_is_sampled(
        self, stage: Target, tmp_path: Path
    ) -> None:
        run, clock = Run.create(tmp_path, {}), start_clock()
        replica_nodes = {replica.node for replica in stage.replicas()}
        worker_nodes: set[str] = set()

        async def send_load() -> Any:
            load = faults.LOAD.model_copy(update={"count": 60})
            running = wb.start_load(stage.endpoint, load, run=run, clock=clock, progress=None)
            await faults.wait_until(lambda: bool(running.records))
            actors = await asyncio.to_thread(stage.cluster.actors, "LoadWorker")
            worker_nodes.update(actors.values())
            return await running

        with Telemetry(stage.endpoint, clock, run.append_telemetry):
            result = asyncio.run(send_load())
            deadline = time.monotonic() + 60
            # The metrics of each node come once per second, or later on a busy machine.
            while run.samples_frame("replica").node.nunique() < 2:
                assert time.monotonic() < deadline, "a node was not sampled"
                time.sleep(0.5)
        assert Counter(r.status for r in result.records) == {"ok": 60}
        assert worker_nodes
        assert not worker_nodes & {*replica_nodes, "head"}
        replicas = run.samples_frame("replica")
        names = {stage.cluster.name(node) for node in replicas.node.unique()}
        assert names == replica_nodes, "telemetry names the node of each engine"
        assert set(replicas.replica) == {r.replica for r in result.records}

    def test_both_replicas_answer_and_name_themselves(self, stage: Target) -> None:
        names = {
            stage.endpoint.client.completions.with_raw_response.create(
                model=stage.endpoint.model_id, prompt="a", max_tokens=1
            ).headers["x-serving-replica"]
            for _ in range(6)
        }
        assert names == {replica.id for replica in stage.replicas()}

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"num_gpus": 1, "accelerator_type": "A100"}, "accelerator_type = 'A100'"),
            ({"tensor_parallel_size": 4, "pipeline_parallel_size": 2}, "3 CPUs"),
            (
                {"tensor_parallel_size": 4, "pipeline_parallel_size": 2, "num_cpus": 0.1},
                "4 GPUs",
            ),
            ({"num_cpus": 2}, "not together on one node|CPUs"),
        ],
    )
    def test_a_placement_that_the_nodes_never_satisfy_is_rejected_with_numbers(
        self, stage: Target, fields: dict[str, Any], message: str
    ) -> None:
        model = wb.ModelSpec(accelerator="gpu", **fields)
        with pytest.raises(ResourcesError, match=message):
            wb.deploy(wb.ServiceSpec(name="never", port=0, model=model))


def play(stage: Target, fault: faults.Inject) -> Outcome:
    outcome = asyncio.run(faults.inject(stage, fault))
    print(outcome.fault, outcome.recovered_s, len(outcome.lost), outcome.causes())
    return outcome


class TestFaults:
    def test_killing_the_controller_fails_no_request(self, stage: Target) -> None:
        outcome = play(stage, faults.controller_killed)
        assert (outcome.lost, outcome.left) == ([], [])
        assert outcome.recovered_s is not None

    def test_a_killed_proxy_is_replaced(self, stage: Target) -> None:
        outcome = play(stage, faults.proxy_killed)
        assert outcome.recovered_s is not None
        assert outcome.left == []
        assert all(record.error for record in outcome.lost)

    def test_a_killed_load_worker_loses_only_its_requests_in_progress(self, stage: Target) -> None:
        outcome = play(stage, faults.load_worker_killed)
        assert outcome.recovered_s is not None
        assert set(outcome.causes()) == {"error: the load worker that sent it died"}
        assert len(outcome.lost) <= faults.STREAMS // 2
        assert "a load worker died" in (outcome.ended_early or "")

    @pytest.mark.parametrize("fault", faults.REPLICA_FAULTS, ids=lambda fault: fault.__name__)
    def test_losing_a_replica_fails_only_its_own_requests(
        self, stage: Target, fault: faults.Inject
    ) -> None:
        outcome = play(stage, fault)
        assert outcome.recovered_s is not None, "it recovers without intervention"
        assert outcome.elsewhere == 0, "a request at the other replica failed"
        assert all(record.error for record in outcome.lost), "a lost request without a cause"
        assert outcome.left == [], "a process of the lost replica still runs"
        assert outcome.finished > 0
        if fault is faults.engine_killed:
            cut = [record for record in outcome.lost if record.token_times_s]
            assert {record.replica for record in cut} == {outcome.victim}, (
                "requests cut in mid-stream were at the killed engine"
            )
            # The replica's process ends with its engine: no request waits for its timeout of 60 s.
            assert outcome.answered_s is not None
            assert outcome.answered_s < 40
