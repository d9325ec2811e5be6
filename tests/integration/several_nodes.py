"""Three nodes and more on this machine, two replicas with real engines: what each node's part is,
and what is lost and what recovers when a part of it dies under load.

The truth is Serve's own account, the process table, each engine's own counters, and the records of
what was sent.

Run by `make test-nodes`, in a process of its own: a process joins one cluster, and the other tests
share theirs.
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

# `spare` has room for the replica of a node that dies, and GPUs by name only.
WORKERS: dict[str, dict[str, Any]] = {
    "one": {"num_cpus": 1},
    "two": {"num_cpus": 1},
    "spare": {"num_cpus": 1, "num_gpus": 4},
}


@pytest.fixture(scope="module")
def stage() -> Iterator[Target]:
    """One deployment for all; at its end no process of the cluster may be left."""
    before = set(psutil.pids())
    with nodes(WORKERS) as cluster:
        with wb.deploy(faults.service_spec(), address=cluster.address) as endpoint:
            yield Target(cluster, endpoint)
        engines = [p.name() for p in cluster.processes("VLLM::EngineCore")]
        assert engines == [], "the service is deleted, and an engine goes on"
    assert [p.name() for p in left_over(before, within_s=10)] == []


class TestNodes:
    def test_the_replicas_are_on_nodes_of_their_own(self, stage: Target) -> None:
        where = [replica.node for replica in stage.replicas()]
        assert len(where) == len(set(where)) == 2
        assert "head" not in where

    def test_load_workers_keep_away_from_replicas_and_every_node_is_seen(
        self, stage: Target, tmp_path: Path
    ) -> None:
        run, clock = Run.create(tmp_path, {}), start_clock()
        held = {replica.node for replica in stage.replicas()}
        places: set[str] = set()

        async def go() -> Any:
            load = faults.LOAD.model_copy(update={"count": 60})
            running = wb.start_load(stage.endpoint, load, run=run, clock=clock, progress=None)
            await faults.wait_until(lambda: bool(running.records))
            found = await asyncio.to_thread(stage.cluster.actors, "LoadWorker")
            places.update(found.values())
            return await running

        with Telemetry(stage.endpoint, clock, run.append_telemetry):
            result = asyncio.run(go())
            time.sleep(3)
        assert Counter(r.status for r in result.records) == {"ok": 60}
        assert places
        assert not places & {*held, "head"}
        replicas = run.samples("replica")
        names = {stage.cluster.name(node) for node in replicas.node.unique()}
        assert names == held, "telemetry of each engine, with the node it is on"
        assert set(replicas.replica) == {r.replica for r in result.records}

    def test_both_replicas_answer_and_the_records_say_which(self, stage: Target) -> None:
        names = {
            stage.endpoint.client.completions.with_raw_response.create(
                model=stage.endpoint.model_id, prompt="a", max_tokens=1
            ).headers["x-serving-replica"]
            for _ in range(6)
        }
        assert names == {replica.id for replica in stage.replicas()}

    @pytest.mark.parametrize(
        ("fields", "said"),
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
    def test_a_placement_the_nodes_can_never_satisfy_is_refused_with_the_numbers(
        self, stage: Target, fields: dict[str, Any], said: str
    ) -> None:
        model = wb.ModelSpec(accelerator="gpu", **fields)
        with pytest.raises(ResourcesError, match=said):
            wb.deploy(wb.ServiceSpec(name="never", port=0, model=model))


def played(stage: Target, fault: faults.Inject) -> Outcome:
    outcome = asyncio.run(faults.inject(stage, fault))
    print(outcome.fault, outcome.recovered_s, len(outcome.lost), outcome.causes())
    return outcome


class TestFaults:
    def test_without_the_controller_no_request_fails(self, stage: Target) -> None:
        outcome = played(stage, faults.controller_killed)
        assert (outcome.lost, outcome.left) == ([], [])
        assert outcome.recovered_s is not None

    def test_the_proxy_dies_and_another_takes_its_place(self, stage: Target) -> None:
        outcome = played(stage, faults.proxy_killed)
        assert outcome.recovered_s is not None
        assert outcome.left == []
        assert all(record.error for record in outcome.lost)

    def test_a_load_worker_dies_and_only_what_it_had_in_progress_is_lost(
        self, stage: Target
    ) -> None:
        outcome = played(stage, faults.load_worker_killed)
        assert outcome.recovered_s is not None
        assert set(outcome.causes()) == {"error: the load worker that sent it died"}
        assert len(outcome.lost) <= faults.STREAMS // 2
        assert "a load worker died" in (outcome.ended_early or "")

    @pytest.mark.parametrize("fault", faults.REPLICA_FAULTS, ids=lambda fault: fault.__name__)
    def test_a_replica_is_lost_and_nothing_but_what_it_held(
        self, stage: Target, fault: faults.Inject
    ) -> None:
        outcome = played(stage, fault)
        assert outcome.recovered_s is not None, "it answers again without a hand"
        assert outcome.elsewhere == 0, "a request of the other replica failed"
        assert all(record.error for record in outcome.lost), "a loss without its cause"
        assert outcome.left == [], "a process of the broken replica goes on"
        assert outcome.finished > 0
        if fault is faults.engine_killed:
            cut = [record for record in outcome.lost if record.token_times_s]
            assert {record.replica for record in cut} == {outcome.victim}, "cut in mid-stream"
            # Its process ends with it, so that no request fails long after.
            assert outcome.answered_s is not None
            assert outcome.answered_s < 20
