"""Change the scaling of a running service, and wait until it has taken effect."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from serving.errors import DeployError, SpecError
from serving.spec.pipeline import PipelineSpec
from serving.spec.scaling import ScalingSpec
from serving.spec.service import EndpointSpec, ServiceSpec

if TYPE_CHECKING:
    from serving.deploy.status import ServiceStatus

POLL_S = 0.5
"""Seconds between two reads of a service's status."""


def rescaled(spec: EndpointSpec, scaling: Mapping[str, Any]) -> EndpointSpec:
    """Return ``spec`` with these fields of every model's scaling changed.

    Raises:
        SpecError: A field or value is invalid, or the change turns scaling to zero on or off.
            Requests take another path then, so all replicas would be replaced.
    """
    if isinstance(spec, ServiceSpec) and spec.model.disaggregated:
        raise SpecError(
            "a disaggregated model has a scaling for each side; deploy it again with other values "
            "of disaggregated.prefill.scaling and disaggregated.decode.scaling"
        )
    # The number of replicas of the first deployment does not apply to a running service.
    scaling = {"initial_replicas": None, **scaling}
    models = tuple(
        model.model_copy(update={"scaling": ScalingSpec(**model.scaling.model_dump() | scaling)})
        for model in spec.models
    )
    field = {"models": models} if isinstance(spec, PipelineSpec) else {"model": models[0]}
    changed = spec.model_copy(update=field)
    if changed.composed != spec.composed:
        raise SpecError(
            "min_replicas must not change between 0 and more on a running service, got "
            f"{scaling['min_replicas']}; delete the service and deploy it again"
        )
    return changed


async def wait_for_replicas(
    read_status: Callable[[], ServiceStatus],
    deployment: str,
    replicas: int,
    timeout_s: float,
) -> None:
    """Wait until a deployment has exactly `replicas` replicas, all of them running.

    Args:
        read_status: Returns the service's current status; runs in a thread.
        deployment: Name of the deployment.
        replicas: Number of replicas to wait for.
        timeout_s: Seconds to wait.

    Raises:
        DeployError: The deployment did not reach that state in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        state = (await asyncio.to_thread(read_status)).deployments[deployment]
        changing = state.starting + state.stopping
        if (state.target, state.running, changing) == (replicas, replicas, 0):
            return
        if time.monotonic() > deadline:
            raise DeployError(
                f"{deployment} must reach {replicas} replica(s) within {timeout_s:g} s, got "
                f"{state.running} running, {state.starting} starting and {state.stopping} "
                f"stopping of target {state.target}; stop the load, or raise timeout_s"
            )
        await asyncio.sleep(POLL_S)
