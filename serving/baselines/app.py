"""From a BaselineSpec to a Serve application: the direct path, with another replica class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from serving.spec.baseline import BaselineSpec

if TYPE_CHECKING:
    from ray.serve import Application

BASELINE_REPLICA = "serving.baselines.replica.BaselineReplica"


def replica(spec: BaselineSpec, **options: Any) -> Application:
    """The deployment, bound; its engine's process computes on what the replica itself holds."""
    from serving.deploy.deployments import deployment

    model = spec.model
    made = deployment(BASELINE_REPLICA, spec, model, **options)
    actor = dict(made.ray_actor_options) | {"num_cpus": model.num_cpus}
    if model.accelerator == "gpu":
        actor["num_gpus"] = model.num_gpus or 1.0
    return made.options(ray_actor_options=actor).bind(spec.model_dump(mode="json"))
