"""What is checked before a tuning deploys anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from serving.deploy.preflight import check_spec
from serving.spec.service import ServiceSpec
from workbench.errors import SettingError
from workbench.metrics.bootstrap import MIN_REPEATS
from workbench.tuning.configurations import Configuration, Settings
from workbench.tuning.halving import rung_sizes

if TYPE_CHECKING:
    from serving.spec.service import EndpointSpec
    from workbench.workload.spec import LoadSpec

MAX_CONFIGURATIONS = 1000


def check_service(spec: EndpointSpec) -> None:
    """Check that `spec` is one model with a fixed number of replicas.

    Raises:
        SettingError: It is not.
    """
    if not isinstance(spec, ServiceSpec):
        raise SettingError(
            f"spec must be a ServiceSpec, whose engine is tuned, got a {type(spec).__name__}"
        )
    scaling = spec.model.scaling
    if scaling.min_replicas != scaling.max_replicas:
        raise SettingError(
            "spec must have as many min_replicas as max_replicas, so that configurations are "
            f"comparable, got {scaling.min_replicas} and {scaling.max_replicas}"
        )


def check_numbers(
    load: LoadSpec,
    loads: Sequence[float],
    eta: int,
    repeats: int,
    budget_min: float | None,
) -> None:
    """Check the loads and the numbers of a tuning.

    Raises:
        SettingError: A value is invalid.
    """
    rung_sizes(1, eta)
    if repeats < MIN_REPEATS:
        raise SettingError(f"repeats must be at least {MIN_REPEATS} for an interval, got {repeats}")
    if budget_min is not None and not 0 < budget_min < math.inf:
        raise SettingError(f"budget_min must be above 0 and finite, got {budget_min}")
    if load.duration_s is None and load.count is None:
        raise SettingError("load must have duration_s or count, got neither; give one")
    if len(set(loads)) < len(loads):
        raise SettingError(f"loads has a value twice: {list(loads)}; remove one")
    for value in loads:
        load.at(value)


def check_configurations(
    spec: ServiceSpec, settings: Settings, configurations: Sequence[Configuration]
) -> None:
    """Check the number of configurations, and each value alone as far as possible beforehand.

    A combination that is invalid although each of its values is valid fails when it is deployed.

    Raises:
        SettingError: There are too many.
        SpecError: vLLM has no such argument, or a value has the wrong type.
    """
    if len(configurations) > MAX_CONFIGURATIONS:
        raise SettingError(
            f"settings have {len(configurations)} combinations, more than {MAX_CONFIGURATIONS}: "
            "give max_configurations, or fewer values"
        )
    check_spec(spec)
    for name, values in settings.items():
        for value in values:
            check_spec(Configuration(settings={name: value}).apply(spec))
