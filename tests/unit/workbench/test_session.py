"""`wb.Session` against a scripted server, and against stand-ins for deployed services."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from support.paths import ROOT
from support.scripted_server import ScriptedServer, threaded, tokens

from serving.errors import ClusterError, DeployError, EndpointGoneError
from serving.spec.model import ModelSpec
from serving.spec.scaling import ScalingSpec
from serving.spec.service import ServiceSpec
from serving.spec.tenants import Tenant
from workbench.clock import start_clock
from workbench.endpoints.remote import Remote
from workbench.endpoints.services import KEEP_VARIABLE, delete_left_services
from workbench.errors import RunError, SettingError
from workbench.loadgen.closed_loop import closed_loop
from workbench.loadgen.handle import LoadResult
from workbench.metrics.health import ClientHealth
from workbench.metrics.slo import SLO
from workbench.runs.run import Run
from workbench.session import Session, default_run_root
from workbench.workload.arrivals import ClosedLoop
from workbench.workload.prompts import RandomPrompts
from workbench.workload.spec import LoadSpec

PARAMETERS = """
rate = 4.0
api_key = ""
seed = 3
live = False
address = ""
port = 0
run_root = ""
run_id = ""
"""
LOAD = LoadSpec(
    arrivals=ClosedLoop(max_concurrency=2), prompts=RandomPrompts(input=4, output=5), count=6
)
SPEC = ServiceSpec(model=ModelSpec(id="scripted"))


class LoadInThisProcess:
    """Stands in for the load workers: sends the load's requests from the test's event loop."""

    def __init__(self, target: Remote, load: LoadSpec, run: Run | None = None, **_: Any) -> None:
        assert load.count is not None
        self.clock = start_clock()
        self._count, self._target, self._run = load.count, target, run

    def __await__(self) -> Generator[Any, None, LoadResult]:
        return self._send().__await__()

    async def _send(self) -> LoadResult:
        records = await closed_loop(
            self._target.async_client,
            model=self._target.model_id,
            prompts=["a prompt"] * self._count,
            max_tokens=5,
            concurrency=2,
            clock=self.clock,
            on_record=None if self._run is None else self._run.append_request,
        )
        return LoadResult(records, ClientHealth.judge(), self._count, "", 0.0)


@pytest.fixture(autouse=True)
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook in the working directory, no load workers, and runs under the test's folder."""
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": [PARAMETERS]}
    (tmp_path / "07_trial_run.ipynb").write_text(json.dumps({"cells": [cell]}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("workbench.experiments.measure.start_load", LoadInThisProcess)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with threaded(tokens(5)) as server:
        server.models = ["scripted"]
        yield server


def namespace(**given: Any) -> dict[str, Any]:
    """A notebook's `globals()` after its parameters cell."""
    values: dict[str, Any] = {"wb": object()}
    exec(PARAMETERS, values)
    return values | given


def session(**given: Any) -> Session:
    return Session(namespace(**given), "07_trial_run")


class Deployed:
    """Stands in for a deployed endpoint."""

    deployment = "scripted"

    def __init__(self, spec: ServiceSpec) -> None:
        # The cluster has another application of the default name, so this one has a suffix.
        self.requested, self.gone, self.deleted = spec, False, 0
        self.spec = spec.model_copy(update={"name": f"{spec.name}-ada"})
        self.extra_body: dict[str, Any] = {}

    @property
    def requested_spec(self) -> ServiceSpec:
        return self.spec.model_copy(update={"name": self.requested.name})

    def status(self) -> None:
        if self.gone:
            raise EndpointGoneError("gone")

    def delete(self) -> None:
        self.deleted += 1
        self.gone = True


class Deployments:
    """Stands in for `open_endpoint`; `failures` are raised first."""

    def __init__(self) -> None:
        self.made: list[Any] = []
        self.failures: list[Exception] = []
        self.terms: list[tuple[Any, Any]] = []

    def __call__(self, spec: ServiceSpec, **given: Any) -> Any:
        if self.failures:
            raise self.failures.pop(0)
        self.terms.append((given["lease_minutes"], given["idle_minutes"]))
        self.made.append(Deployed(spec))
        return self.made[-1]


@pytest.fixture
def deployments(monkeypatch: pytest.MonkeyPatch) -> Deployments:
    made = Deployments()
    monkeypatch.setattr("workbench.endpoints.services.open_endpoint", made)
    monkeypatch.setattr("workbench.endpoints.services._services", {})
    return made


class TestARun:
    def test_keeps_requests_summary_and_report(
        self, server: ScriptedServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = session(address=server.base_url)
        endpoint = run.open(SPEC)
        assert endpoint.base_url == server.base_url
        result = asyncio.run(run.measure(LOAD, slo=SLO(e2el_ms=60_000)))
        run.finish({"Nothing": go.Figure()})
        kept = Run.open(run.path)
        records = list(kept.records())
        # The server's own log: the warm-up came first and is not in the run.
        assert len(server.log) == 12 + 6
        assert {r.request_id for r in records} == {e.request_id for e in server.log[-6:]}
        assert [r.output_tokens for r in records] == [5] * 6
        summary = kept.summary()
        assert summary is not None
        assert summary.slo_attainment == 1.0
        assert len(result.records) == 6
        page = (run.path / "report.html").read_text()
        assert "<title>Trial run</title>" in page
        assert f"python -m workbench repeat {run.path}" in page
        assert f"report      {run.path / 'report.html'}" in capsys.readouterr().out

    def test_records_the_parameters_without_secrets(self) -> None:
        run = Session(namespace(api_key="sk-" + "a" * 40), "07_trial_run", spec=SPEC)
        experiment = run.folder.experiment
        assert experiment["notebook"] == "07_trial_run"
        assert experiment["parameters"]["rate"] == 4.0
        assert list(experiment["parameters"]) == list(namespace())[2:]
        assert experiment["spec"]["model"]["id"] == "scripted"
        assert run.folder.document["seed"] == 3
        assert "aaaa" not in (run.path / "experiment.json").read_text()

    def test_creates_no_folder_before_it_is_needed(self, tmp_path: Path) -> None:
        session()
        assert not (tmp_path / "runs").exists()

    def test_a_parameter_without_a_value_is_named(self) -> None:
        values = namespace()
        del values["seed"]
        with pytest.raises(SettingError, match="seed"):
            Session(values, "07_trial_run")

    def test_needs_an_open_endpoint_to_measure(self) -> None:
        with pytest.raises(SettingError, match=r"call open\(spec\) first"):
            asyncio.run(session().measure(LOAD))

    def test_a_summary_given_to_finish_replaces_that_of_the_load(
        self, server: ScriptedServer
    ) -> None:
        run = session(address=server.base_url)
        run.open(SPEC)
        result = asyncio.run(run.measure(LOAD))
        run.finish({}, title="A title", summary=result.summary(SLO(ttft_ms=1, target=0.9)))
        summary = Run.open(run.path).summary()
        assert summary is not None
        assert summary.slo is not None
        assert "<title>A title</title>" in (run.path / "report.html").read_text()

    def test_its_random_numbers_follow_from_the_seed(self) -> None:
        run = session(seed=5)
        draws = [run.rng().integers(0, 1_000_000, 4).tolist() for _ in range(2)]
        assert draws[0] == draws[1] == np.random.default_rng(5).integers(0, 1_000_000, 4).tolist()

    def test_a_bar_is_shown_to_a_person_and_lines_to_a_pipeline(self) -> None:
        assert session(live=True).progress == "bar"
        assert session(live=False).progress == "lines"


class TestACellThatIsExecutedAgain:
    def test_measure_continues_in_a_new_folder(self, server: ScriptedServer) -> None:
        run = session(address=server.base_url)
        run.open(SPEC)
        asyncio.run(run.measure(LOAD))
        first = run.path
        asyncio.run(run.measure(LOAD))
        assert run.path != first
        assert [len(list(Run.open(path).records())) for path in (first, run.path)] == [6, 6]
        assert len(server.log) == 12 + 6 + 6, "the service is warmed up once"

    def test_a_given_run_id_gets_a_number(self, server: ScriptedServer) -> None:
        run = session(address=server.base_url, run_id="mine")
        run.open(SPEC)
        names = []
        for _ in range(3):
            asyncio.run(run.measure(LOAD))
            names.append(run.path.name)
        assert names == ["mine", "mine-2", "mine-3"]

    def test_a_new_session_does_not_write_into_a_folder_that_exists(self) -> None:
        assert session(run_id="mine").path.is_dir()
        with pytest.raises(RunError, match="mine"):
            _ = session(run_id="mine").path

    def test_parts_get_a_number(self) -> None:
        run = session()
        parts = [run.part("sides", "finite", limit=limit) for limit in (1, 2)]
        assert [part.path.name for part in parts] == ["finite", "finite-2"]
        assert {part.path.parent for part in parts} == {run.path / "sides"}
        assert parts[1].experiment["limit"] == 2
        assert parts[1].experiment["parameters"] == run.folder.experiment["parameters"]

    def test_after_an_exception_the_next_load_has_a_folder_of_its_own(
        self, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = session(address=server.base_url)
        run.open(SPEC)

        def fails(*_: Any) -> None:
            raise OSError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(Run, "finish", fails)
            with pytest.raises(OSError, match="disk is full"):
                asyncio.run(run.measure(LOAD))
        broken = run.path
        asyncio.run(run.measure(LOAD))
        assert Run.open(broken).summary() is None
        assert Run.open(run.path).summary() is not None

    def test_open_returns_the_endpoint_that_still_answers(self, server: ScriptedServer) -> None:
        run = session(address=server.base_url)
        assert run.open(SPEC) is run.open(SPEC)
        run.close()

    def test_open_connects_again_to_an_endpoint_that_came_back(self) -> None:
        run = session()
        with threaded(tokens(5)) as server:
            server.models = ["scripted"]
            run = session(address=server.base_url)
            first = run.open(SPEC)
        with pytest.raises(EndpointGoneError):
            run.open(SPEC)
        assert first is run.endpoint
        run.close()


class TestDeployedServices:
    def test_the_same_specification_returns_the_running_one(self, deployments: Deployments) -> None:
        run = session()
        assert run.open(SPEC) is run.open(SPEC.model_copy())
        assert len(deployments.made) == 1

    def test_a_changed_specification_replaces_it(self, deployments: Deployments) -> None:
        run = session()
        run.open(SPEC)
        changed = ServiceSpec(model=ModelSpec(id="scripted", max_model_len=512))
        assert run.open(changed) is deployments.made[1]
        assert run.endpoint is deployments.made[1]
        run.close()
        assert [endpoint.deleted for endpoint in deployments.made] == [0, 1], (
            "endpoint service under endpoint name"
        )

    def test_changed_tenants_replace_it(self, deployments: Deployments) -> None:
        run = session()
        run.open(SPEC)
        run.open(SPEC, tenants=[Tenant(name="ada")])
        run.open(SPEC, tenants=[Tenant(name="ada")])
        assert len(deployments.made) == 2

    def test_opening_again_renews_a_lease_and_keeps_an_idle_time(
        self, deployments: Deployments
    ) -> None:
        run = session()
        run.open(SPEC, idle_minutes=5)
        run.open(SPEC, idle_minutes=5)
        assert deployments.terms == [(None, 5)]
        run.open(SPEC, lease_minutes=60)
        assert run.open(SPEC, lease_minutes=60) is run.endpoint is deployments.made[-1]
        assert deployments.terms[1:] == [(60, None), (60, None)]

    def test_one_that_was_rescaled_is_deployed_as_specified(self, deployments: Deployments) -> None:
        run = session()
        run.open(SPEC)
        deployments.made[0].spec = ServiceSpec(model=ModelSpec(id="rescaled"))
        run.open(SPEC)
        assert len(deployments.made) == 2

    def test_one_that_is_gone_is_deployed_again(self, deployments: Deployments) -> None:
        run = session()
        run.open(SPEC)
        deployments.made[0].gone = True
        assert run.open(SPEC) is deployments.made[1]

    def test_where_the_cluster_cannot_change_it_is_deleted_first(
        self, deployments: Deployments
    ) -> None:
        run = session()
        run.open(SPEC)
        deployments.failures = [ClusterError("Serve listens on another port")]
        run.open(SPEC.model_copy(update={"port": 8123}))
        assert [endpoint.deleted for endpoint in deployments.made] == [1, 0]

    def test_a_failed_deployment_leaves_nothing_to_return(self, deployments: Deployments) -> None:
        run = session()
        deployments.failures = [DeployError("no memory"), ClusterError("no cluster")]
        with pytest.raises(DeployError):
            run.open(SPEC)
        with pytest.raises(ClusterError):
            run.open(SPEC)
        with pytest.raises(SettingError):
            _ = run.endpoint
        assert run.open(SPEC) is deployments.made[0]

    def test_other_names_stand_beside_it_and_all_end_with_finish(
        self, deployments: Deployments
    ) -> None:
        run = session()
        run.open(SPEC)
        run.open(ServiceSpec(name="beside", route_prefix="/beside"))
        run.close()
        run.close()
        assert [endpoint.deleted for endpoint in deployments.made] == [1, 1]

    def test_a_report_that_fails_still_tears_down(self, deployments: Deployments) -> None:
        run = session()
        run.open(SPEC)
        with pytest.raises(AttributeError):
            run.finish({"Broken": None})
        assert deployments.made[0].deleted == 1


class TestTwoSessions:
    def test_have_folders_of_their_own(self) -> None:
        assert session().path != session().path

    def test_the_later_one_takes_the_service_over(self, deployments: Deployments) -> None:
        first, second = session(), session()
        assert first.open(SPEC) is second.open(SPEC)
        first.close()
        assert deployments.made[0].deleted == 0
        second.close()
        assert deployments.made[0].deleted == 1

    def test_a_session_made_again_replaces_the_service_of_the_first(
        self, deployments: Deployments
    ) -> None:
        session().open(SPEC)
        again = session()
        again.open(ServiceSpec(model=ModelSpec(id="changed")))
        again.close()
        assert [endpoint.deleted for endpoint in deployments.made] == [0, 1]

    def test_services_of_different_names_end_separately(self, deployments: Deployments) -> None:
        first, second = session(), session()
        first.open(SPEC)
        second.open(ServiceSpec(name="other"))
        first.close()
        assert [endpoint.deleted for endpoint in deployments.made] == [1, 0]
        second.close()


class TestTheFolderOfRuns:
    def test_is_beside_the_notebooks_wherever_the_kernel_runs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("WORKBENCH_RUNS")
        for folder in (tmp_path, ROOT, ROOT / "notebooks"):
            monkeypatch.chdir(folder)
            assert default_run_root() == ROOT / "runs"

    def test_may_be_named_by_a_variable(self, tmp_path: Path) -> None:
        assert session().path.parent == tmp_path / "runs"

    def test_a_parameter_overrides_it(self, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere"
        assert session(run_root=str(elsewhere)).path.parent == elsewhere

    def test_without_a_checkout_it_is_in_the_working_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("WORKBENCH_RUNS")
        monkeypatch.setattr("workbench.session.NOTEBOOKS", tmp_path / "none")
        assert default_run_root() == tmp_path / "runs"


class TestServicesBetweenNotebooks:
    @pytest.fixture(autouse=True)
    def keep(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(KEEP_VARIABLE, "1")

    def test_the_same_specification_is_not_deployed_again(self, deployments: Deployments) -> None:
        first, second = session(), session()
        endpoint = first.open(ServiceSpec())
        first.close()
        assert second.open(ServiceSpec()) is endpoint
        assert len(deployments.made) == 1

    def test_the_next_load_finds_no_prompts_of_an_earlier_one(
        self, deployments: Deployments
    ) -> None:
        salts = []
        for _ in range(3):
            notebook = session()
            salts.append(notebook.open(ServiceSpec()).extra_body.get("cache_salt"))
            notebook.close()
        assert salts[0] is None
        assert salts[1] != salts[2]
        assert all(salts[1:])

    def test_another_specification_replaces_it(self, deployments: Deployments) -> None:
        first, second = session(), session()
        first.open(ServiceSpec())
        first.open(ServiceSpec(name="other"))
        first.close()
        second.open(ServiceSpec(port=8123))
        assert len(deployments.made) == 3
        assert deployments.made[1].deleted == 1  # it would take the resources of the new one

    def test_what_the_next_notebook_does_not_open_ends_with_it(
        self, deployments: Deployments
    ) -> None:
        first, second = session(), session()
        first.open(ServiceSpec())
        other = first.open(ServiceSpec(name="other"))
        first.close()
        second.open(ServiceSpec())
        second.close()
        assert [made.deleted for made in deployments.made] == [0, 1]
        assert other is deployments.made[1]
        delete_left_services()
        assert [made.deleted for made in deployments.made] == [1, 1]

    def test_autoscaled_service_is_not_kept(self, deployments: Deployments) -> None:
        scaling = ScalingSpec(min_replicas=1, max_replicas=2)
        notebook = session()
        notebook.open(ServiceSpec(model=ModelSpec(scaling=scaling)))
        notebook.close()
        assert deployments.made[0].deleted == 1
