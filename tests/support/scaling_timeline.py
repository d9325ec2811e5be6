"""A load change, a scaling decision and the replicas that follow, made by hand."""

from __future__ import annotations

from typing import Any

from workbench.analysis.reactions import Reaction, reactions
from workbench.records import DeploymentSample, ReplicaSample
from workbench.telemetry.decisions import ScalingLimits, decisions


def row(time_s: float, target: int, desired: int | None = None, **more: Any) -> DeploymentSample:
    usual = {"running": target, "starting": 0, "stopping": 0}
    fields = usual | more
    return DeploymentSample(time_s=time_s, deployment="m", target=target, desired=desired, **fields)


class ScalingTimeline:
    """Load at 10 s; the count moves at 11, the policy at 12, the target at 16, and so on."""

    limits = ScalingLimits(max_replicas=3, upscale_delay_s=4, downscale_delay_s=4)

    def rows(self) -> list[DeploymentSample]:
        made = []
        for at in range(40):
            target = 2 if 16 <= at < 35 else 1
            running = 2 if 25 <= at < 35 else 1
            total = 1.0 if at < 11 else 9.0 if at < 30 else 0.5
            wants = 1 if at < 12 else 2 if at < 31 else 1
            counts = {"running": running, "starting": int(17 <= at < 25)}
            stopping = int(35 <= at < 38)
            made.append(row(at, target, wants, total_requests=total, stopping=stopping, **counts))
        return made

    def replicas(self) -> list[ReplicaSample]:
        made = []
        for at in range(40):
            old = {"time_s": at, "deployment": "m", "node": "n"}
            made.append(ReplicaSample(**old, replica="old", state="running", output_tokens=at))
            if 18 <= at < 35:
                tokens = {"output_tokens": 5} if at >= 27 else {}
                made.append(ReplicaSample(**old, replica="new", **tokens))
        return made

    def found(self, **more: Any) -> list[Reaction]:
        rows = self.rows()
        made = decisions(rows, self.limits)
        return reactions(rows, made, load_changes_s=[10.0, 30.0], **more)
