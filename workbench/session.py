"""The run of a notebook: open an endpoint, measure, finish.

    run = wb.Session(globals(), "01_latency_under_load")
    endpoint = run.open(spec)
    result = await run.measure(load, slo=bounds)
    run.finish({"Throughput": wb.figures.throughput_over_time(run.folder.requests_frame())})

Every cell can be executed again. `open` returns the service that already runs as specified, or
replaces it; `measure` continues in a new folder once the present one has requests.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.automation.notebooks import NOTEBOOKS, default_parameters, parameters_in
from workbench.endpoints.services import Service, Target, close_services, open_service
from workbench.errors import SettingError
from workbench.experiments.measure import measure, warm_up
from workbench.report import write_report
from workbench.runs.run import Run

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import plotly.graph_objects as go

    from serving.spec.service import EndpointSpec
    from serving.spec.tenants import Tenant
    from workbench.cost.prices import Prices
    from workbench.endpoints.remote import Remote
    from workbench.loadgen.handle import LoadResult
    from workbench.metrics.slo import SLO
    from workbench.metrics.summary import Summary
    from workbench.workload.spec import LoadSpec

RUNS_VARIABLE = "WORKBENCH_RUNS"


def default_run_root() -> Path:
    """Return the default folder of runs, which does not depend on the working directory.

    That is the folder in the variable ``WORKBENCH_RUNS``, else ``runs`` next to the checkout's
    ``notebooks``; ``runs`` in the working directory if the package is installed without them.
    """
    if folder := os.environ.get(RUNS_VARIABLE):
        return Path(folder)
    return NOTEBOOKS.parent / "runs" if NOTEBOOKS.is_dir() else Path("runs").resolve()


class Session:
    """One notebook's run: its parameters, its folder, its endpoint and its report.

    Args:
        namespace: The notebook's `globals()`, which hold the values of its parameters. The
            parameters `address`, `live`, `run_root` and `run_id` are read here if it has them.
        notebook: The notebook's name.
        facts: Further entries of `experiment.json`, besides `notebook`, `parameters` and `seed`.

    Raises:
        SettingError: There is no such notebook, or a parameter has no value.
    """

    def __init__(self, namespace: Mapping[str, Any], notebook: str, **facts: Any) -> None:
        self.notebook = notebook
        self.parameters = parameters_in(notebook, namespace)
        seed = {"seed": self.parameters["seed"]} if "seed" in self.parameters else {}
        self._experiment = {"notebook": notebook, "parameters": self.parameters} | seed | facts
        self._folder: Run | None = None
        self._service: Service | None = None

    @property
    def root(self) -> Path:
        """The folder that the runs are in: the parameter `run_root`, else `default_run_root`."""
        return Path(self.parameters.get("run_root") or default_run_root())

    @property
    def folder(self) -> Run:
        """The run's folder, created when it is first used."""
        if self._folder is None:
            run_id = self.parameters.get("run_id") or None
            self._folder = Run.create(self.root, self._experiment, run_id=run_id)
        return self._folder

    @property
    def path(self) -> Path:
        """The path of the run's folder."""
        return self.folder.path

    @property
    def progress(self) -> str:
        """The form in which progress is shown: `"bar"` if `live` is set, else `"lines"`."""
        return "bar" if self.parameters.get("live") else "lines"

    def rng(self) -> np.random.Generator:
        """Return a new random generator with the parameter `seed`, so that a cell can be repeated.

        Without the parameter the seed is 0.
        """
        import numpy as np

        return np.random.default_rng(self.parameters.get("seed", 0))

    @property
    def endpoint(self) -> Remote:
        """The endpoint opened last.

        Raises:
            SettingError: `open` was not called, or `close` was.
        """
        if self._service is None:
            raise SettingError("this session has no open endpoint; call open(spec) first")
        return self._service.endpoint

    def open(
        self,
        spec: EndpointSpec,
        *,
        tenants: Iterable[Tenant] = (),
        replace: bool = False,
        lease_minutes: float | None = None,
        idle_minutes: float | None = None,
        prices: Prices | None = None,
    ) -> Remote:
        """Return an endpoint that runs `spec`, at the parameter `address`.

        The service that this process runs under the name of `spec` is returned if it runs as
        specified, else replaced. With `replace`, an application of another user is replaced too.
        The service stops by itself after `lease_minutes`, or after `idle_minutes` without a
        request, as for `workbench.deploy`; another call renews the lease.
        Raises what `workbench.open_endpoint` does.
        """
        address = str(self.parameters.get("address") or "")
        self._service = open_service(
            Target(spec, address, tuple(tenants), lease_minutes, idle_minutes, prices),
            owner=self,
            replace=replace,
        )
        return self._service.endpoint

    async def warm_up(self, load: LoadSpec, *, requests: int = 12, concurrency: int = 4) -> None:
        """Send a few requests like those of `load` without recording them."""
        await warm_up(self.endpoint, load, requests=requests, concurrency=concurrency)
        assert self._service is not None
        self._service.warm = True

    async def measure(
        self,
        load: LoadSpec,
        *,
        slo: SLO | None = None,
        run: Run | None = None,
        interval_s: float = 1.0,
    ) -> LoadResult:
        """Send `load` to the endpoint, and keep records, telemetry and summary in a folder.

        A service that has not been warmed up gets a few unrecorded requests first.

        Args:
            load: What is sent and when.
            slo: The bounds for goodput and attainment in the summary.
            run: The folder; by default the session's own, or a new one if that has a load.
            interval_s: Seconds between two samples of the cluster.
        """
        endpoint = self.endpoint
        if self._service is not None and not self._service.warm:
            await self.warm_up(load)
        folder = run or self.empty_folder()
        return await measure(
            endpoint, load, run=folder, slo=slo, progress=self.progress, interval_s=interval_s
        )

    def empty_folder(self) -> Run:
        """Return the session's folder, or a separate new one if that has a load."""
        if self.folder.has_load:
            run_id = self.parameters.get("run_id")
            name = _free_name(self.path.parent, str(run_id)) if run_id else None
            self._folder = Run.create(self.path.parent, self._experiment, run_id=name)
        return self.folder

    def part(self, group: str, name: str, **facts: Any) -> Run:
        """Create a run below the session's folder, at `group/name` (`name-2` if that exists)."""
        root = self.path / group
        return Run.create(root, self._experiment | facts, run_id=_free_name(root, name))

    def finish(
        self,
        figures: Mapping[str, go.Figure],
        *,
        title: str | None = None,
        summary: Summary | None = None,
        tables: Mapping[str, pd.DataFrame] | None = None,
    ) -> None:
        """Write the report and delete what this session deployed.

        Args:
            figures: The figures of the report by heading.
            title: The report's title; by default the notebook's name in words.
            summary: Replaces the summary that `measure` wrote.
            tables: Tables of the report by heading.
        """
        title = title or re.sub(r"^\d+_", "", self.notebook).replace("_", " ").capitalize()
        command = f"python -m workbench repeat {self.path}"
        try:
            if summary is not None:
                self.folder.finish(summary)
            report = write_report(
                self.folder,
                figures,
                title=title,
                command=command,
                tables=tables,
                defaults=default_parameters(self.notebook),
            )
        finally:
            self.close()
        print(f"run folder  {self.path}\nreport      {report}")

    def close(self) -> None:
        """Delete every service that this session opened."""
        self._service = None
        close_services(self)


def _free_name(root: Path, name: str) -> str:
    number, free = 1, name
    while (root / free).exists():
        number += 1
        free = f"{name}-{number}"
    return free
