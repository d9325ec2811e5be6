"""Measure a configuration with real deployments: open it, warm it up, send the loads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.endpoints.deployed import Endpoint
from workbench.errors import (
    DeployError,
    EndpointGoneError,
    ResourcesError,
    SettingError,
    SpecError,
)
from workbench.experiments.measure import measure, warm_up
from workbench.runs.run import Run
from workbench.tuning.configurations import Configuration
from workbench.tuning.store import trial_name
from workbench.tuning.trial import Point, Trial

if TYPE_CHECKING:
    from serving.spec.service import ServiceSpec
    from workbench.endpoints.remote import Remote
    from workbench.metrics.slo import SLO
    from workbench.workload.spec import LoadSpec

Open = Callable[["ServiceSpec"], "Remote"]
"""Deploys a specification in place of the one before, and returns its endpoint."""

FAILURES = (DeployError, ResourcesError, SpecError, EndpointGoneError)
"""The errors that are a configuration's own: they are recorded, and the tuning continues."""

MAX_REASON_CHARS = 600
SEEDS_PER_RUNG = 10_000


@dataclass(frozen=True)
class Measurement:
    """How a configuration is measured.

    Attributes:
        spec: The service; each configuration changes its engine arguments.
        load: The load of the first rung. Its duration and count grow with the rungs.
        loads: Rates or concurrencies; empty: the load as it is.
        slo: The SLO for goodput.
        repeats: Repeats of each load.
        eta: The factor by which the load is longer at each rung.
        open: Deploys a specification.
        runs: The folder of the run folders.
        clock: Returns seconds.
    """

    spec: ServiceSpec
    load: LoadSpec
    loads: Sequence[float]
    slo: SLO
    repeats: int
    eta: int
    open: Open
    runs: Path
    clock: Callable[[], float] = time.monotonic

    async def __call__(self, configuration: Configuration, rung: int) -> Trial:
        """Deploy and measure `configuration`. A failure of it is part of the trial."""
        begin, ready_s = self.clock(), None
        points: tuple[Point, ...] = ()
        failure = None
        try:
            endpoint = await self._deploy(configuration)
            ready_s = self.clock() - begin
            points = await self._send(endpoint, configuration, rung)
        except FAILURES as error:
            failure = " ".join(str(error).split())[:MAX_REASON_CHARS]
        total_s = self.clock() - begin
        start_s = total_s if ready_s is None else ready_s
        return Trial(
            configuration=configuration,
            rung=rung,
            points=points,
            failure=failure,
            start_s=start_s,
            load_s=total_s - start_s,
        )

    async def _deploy(self, configuration: Configuration) -> Remote:
        endpoint = self.open(configuration.apply(self.spec))
        if not isinstance(endpoint, Endpoint):
            raise SettingError(
                f"{endpoint.base_url} was not deployed by this process, so that its engine "
                "arguments cannot be changed: give the address of a Ray cluster"
            )
        # The replicas of the configuration before may still be stopping.
        await endpoint.wait_until_scaled(self.spec.model.scaling.max_replicas)
        return endpoint

    async def _send(
        self, endpoint: Remote, configuration: Configuration, rung: int
    ) -> tuple[Point, ...]:
        """Send every load once per repeat, so that a drift affects all loads."""
        await warm_up(endpoint, self.load)
        points = []
        for repeat in range(self.repeats):
            for number, value in enumerate(self.loads or [None]):
                load = self.load_at(value, rung, repeat, number)
                name = f"{trial_name(configuration, rung)}-{number}-{repeat}"
                facts = {"configuration": configuration.settings, "rung": rung}
                experiment = facts | {"load": load.model_dump(mode="json"), "seed": load.seed}
                folder = Run.create(self.runs, experiment, run_id=name, numbered=True)
                result = await measure(endpoint, load, run=folder, slo=self.slo, progress=None)
                points.append(Point(load=value, repeat=repeat, summary=result.summary(self.slo)))
        return tuple(points)

    def load_at(self, value: float | None, rung: int, repeat: int, number: int) -> LoadSpec:
        """Return the load of one measurement.

        Every configuration gets the same requests. No two measurements of one have the same seed,
        so that no prefix cache knows the prompts.
        """
        factor = self.eta**rung
        seed = self.load.seed + SEEDS_PER_RUNG * rung + len(self.loads or [None]) * repeat + number
        load = self.load if value is None else self.load.at(value)
        longer = {
            "duration_s": None if load.duration_s is None else load.duration_s * factor,
            "count": None if load.count is None else load.count * factor,
        }
        return load.model_copy(update=longer | {"seed": seed})
