"""A load change, a scaling decision and the replicas that follow, made by hand."""

from __future__ import annotations

from typing import Any

from workbench.analysis.reactions import Reaction, reactions
from workbench.records import DeploymentSample, ReplicaSample
from workbench.telemetry.decisions import ScalingLimits, decisions


def row(time_s: float, target: int, desired: int | None = None, **more: Any) -> DeploymentSample:
    defaults = {"running": target, "starting": 0, "stopping": 0}
    fields = defaults | more
    return DeploymentSample(time_s=time_s, deployment="m", target=target, desired=desired, **fields)


class ScalingTimeline:
    """The load changes at 10 s, the count at 11 s, the request at 12 s, the target at 16 s."""

    limits = ScalingLimits(max_replicas=3, upscale_delay_s=4, downscale_delay_s=4)

    def rows(self) -> list[DeploymentSample]:
        samples: list[DeploymentSample] = []
        for at in range(40):
            target = 2 if 16 <= at < 35 else 1
            running = 2 if 25 <= at < 35 else 1
            total = 1.0 if at < 11 else 9.0 if at < 30 else 0.5
            desired = 1 if at < 12 else 2 if at < 31 else 1
            counts = {"running": running, "starting": int(17 <= at < 25)}
            stopping = int(35 <= at < 38)
            samples.append(
                row(at, target, desired, total_requests=total, stopping=stopping, **counts)
            )
        return samples

    def replicas(self) -> list[ReplicaSample]:
        samples: list[ReplicaSample] = []
        for at in range(40):
            old: dict[str, Any] = {"time_s": at, "deployment": "m", "node": "n"}
            samples.append(ReplicaSample(**old, replica="old", state="running", output_tokens=at))
            if 18 <= at < 35:
                # Its warm-up samples 6 tokens.
                tokens: dict[str, Any] = (
                    {"output_tokens": 50 if at >= 27 else 6} if at >= 24 else {}
                )
                samples.append(ReplicaSample(**old, replica="new", **tokens))
        return samples

    def reactions(self, **more: Any) -> list[Reaction]:
        rows = self.rows()
        changes = decisions(rows, self.limits)
        return reactions(rows, changes, load_changes_s=[10.0, 30.0], **more)
