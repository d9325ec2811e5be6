"""A run made by hand: the load rises, holds and drops, and there are 0, 1, 2, 1, 0 replicas."""

from __future__ import annotations

from pathlib import Path

from support.records import failed, record

from workbench.records import DecisionSample, DeploymentSample, LoadChange, ReplicaSample
from workbench.runs.run import Run
from workbench.workload.arrivals import Stages
from workbench.workload.prompts import RandomPrompts
from workbench.workload.spec import LoadSpec

MODEL = "tiny"
LOAD = LoadSpec(
    arrivals=Stages(stages=[(4, 20), (4, 40), (0, 0), (0, 60)], burstiness=None),
    prompts=RandomPrompts(input=8, output=8),
)
SECONDS = 120


def made_run(root: Path, run_id: str = "made") -> Run:
    """Return the complete run, in a folder below `root`."""
    run = Run.create(root, {"load": LOAD.model_dump(mode="json")}, run_id=run_id)
    for change in (
        LoadChange(0.0, "start", load=LOAD.model_dump(mode="json")),
        LoadChange(40.0, "rate", 4.0, "9 requests/s requested, capped"),
        LoadChange(60.0, "rate", 0.0),
        LoadChange(float(SECONDS), "end"),
    ):
        run.append_change(change)
    for number in range(200):
        sent = 0.2 + 0.3 * number
        # All requests wait until the first replica has started.
        first = max(sent + 0.1, 15.0 + 0.01 * number)
        times = [first + 0.02 * token for token in range(8)]
        run.append_request(record(sent, *times, scheduled_s=sent, request_id=f"r{number}"))
    run.append_request(failed("shed", 30.0, 30.1))
    run.append_request(failed("error", 41.0, 42.5))
    for second in range(SECONDS):
        _sample(run, second)
    return run


def replicas_at(second: int) -> tuple[int, int, int]:
    """Return the number of running, starting and stopping replicas."""
    if second < 1 or second >= 95:
        return (0, 0, 0)
    if second < 15:
        return (0, 1, 0)
    if second < 30:
        return (1, 1, 0)
    return (2, 0, 0) if second < 80 else (1, 0, 0)


def _sample(run: Run, second: int) -> None:
    at, (running, starting, stopping) = second + 0.25, replicas_at(second)
    target = running + starting
    before = sum(replicas_at(second - 1)[:2])
    for deployment in (MODEL, "ingress"):
        counts = {"target": target, "running": running, "starting": starting}
        if deployment == "ingress":
            counts = {"target": 1, "running": 1, "starting": 0}
        run.append_telemetry(
            DeploymentSample(time_s=at, deployment=deployment, stopping=stopping, **counts)
        )
    if target != before:
        run.append_telemetry(
            DecisionSample(
                time_s=at,
                deployment=MODEL,
                from_target=before,
                to_target=target,
                desired=target,
                total_requests=float(12 * target),
                held_by="upscale_delay_s" if target > before else "downscale_delay_s",
            )
        )
    for replica in range(running):
        if second in (50, 51, 52, 53, 54):
            continue  # The node did not answer.
        busy = 20 - second if second < 18 else (3 if second < 61 else 0)
        run.append_telemetry(
            ReplicaSample(
                time_s=at,
                deployment=MODEL,
                replica=f"r{replica}",
                node="n",
                running_requests=busy,
                waiting_requests=max(0, busy - 3),
                kv_cache_usage=0.02 * busy,
                output_tokens=second * 10,
            )
        )
