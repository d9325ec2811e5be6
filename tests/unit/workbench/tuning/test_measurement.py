"""What a configuration is measured with: its deployment, its loads, their seeds and run folders.

The deployment and the load generator are stand-ins that note what they get.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, create_autospec

import pytest
from pydantic import SecretStr
from support.tuning import BOUNDS, summary

from serving.spec.model import ModelSpec
from serving.spec.service import ServiceSpec
from workbench.endpoints.deployed import Endpoint
from workbench.endpoints.remote import Remote
from workbench.errors import (
    DeployError,
    EndpointGoneError,
    MissingPackageError,
    RunError,
    SettingError,
)
from workbench.runs.lock import lock_folder
from workbench.tuning import measurement
from workbench.tuning.result import TuningResult
from workbench.tuning.tuner import tune_engine
from workbench.workload.arrivals import ClosedLoop
from workbench.workload.prompts import RandomPrompts
from workbench.workload.spec import LoadSpec

LOAD = LoadSpec(
    arrivals=ClosedLoop(max_concurrency=8),
    prompts=RandomPrompts(input=8, output=8),
    count=10,
    duration_s=2.0,
    seed=7,
)
SETTINGS = {"max_num_seqs": [8, 2], "enable_prefix_caching": [True, False]}


@dataclass
class Cluster:
    """A cluster whose engine answers max_num_seqs requests/s, and notes what it is asked for."""

    broken: dict[int, Exception] = field(default_factory=dict)
    deployed: list[ServiceSpec] = field(default_factory=list)
    sent: list[tuple[dict[str, Any], LoadSpec, Path]] = field(default_factory=list)
    warmed: int = 0

    def open(self, spec: ServiceSpec) -> Remote:
        kwargs = spec.model.engine_kwargs
        self.deployed.append(spec)
        if error := self.broken.get(kwargs["max_num_seqs"]):
            raise error
        endpoint = create_autospec(Endpoint, instance=True)
        endpoint.kwargs = kwargs
        endpoint.wait_until_scaled = AsyncMock()
        return endpoint

    async def warm_up(self, endpoint: Any, load: LoadSpec) -> None:
        self.warmed += 1

    async def measure(self, endpoint: Any, load: LoadSpec, *, run: Any, **_: Any) -> Any:
        self.sent.append((endpoint.kwargs, load, run.path))
        good = 10 * endpoint.kwargs["max_num_seqs"] + len(self.sent) % 2
        return SimpleNamespace(summary=lambda slo: summary(good))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(measurement, "measure", made.measure)
    monkeypatch.setattr(measurement, "warm_up", made.warm_up)
    return made


def tune(cluster: Cluster, folder: Path, **changed: Any) -> TuningResult:
    given: dict[str, Any] = {
        "spec": ServiceSpec(model=ModelSpec()),
        "settings": SETTINGS,
        "load": LOAD,
        "slo": BOUNDS,
        "open": cluster.open,
        "folder": folder,
        "loads": [4, 8],
        "eta": 2,
        "progress": [].append,
    }
    return asyncio.run(tune_engine(**given | changed))


def test_every_configuration_gets_the_same_requests(cluster: Cluster, tmp_path: Path) -> None:
    result = tune(cluster, tmp_path)
    assert result.unit == "concurrent requests"
    assert result.best is not None
    assert result.best.settings["max_num_seqs"] == 8
    assert len(cluster.deployed) == cluster.warmed == 4 + 2
    by_configuration: dict[str, list[LoadSpec]] = {}
    for kwargs, load, _ in cluster.sent:
        by_configuration.setdefault(json.dumps(kwargs), []).append(load)
    short = [loads for loads in by_configuration.values() if len(loads) == 6]
    long = [loads for loads in by_configuration.values() if len(loads) == 12]
    assert (len(short), len(long)) == (2, 2)
    assert short[0] == short[1] == long[0][:6] == long[1][:6]
    assert long[0] == long[1]
    assert len({load.seed for load in long[0]}) == 12, "no prefix cache knows the prompts"
    assert [load.arrivals.max_concurrency for load in short[0]] == [4, 8] * 3
    assert [(load.duration_s, load.count) for load in long[0]] == [(2.0, 10)] * 6 + [(4.0, 20)] * 6


def test_each_load_is_a_run(cluster: Cluster, tmp_path: Path) -> None:
    tune(cluster, tmp_path)
    folders = [path for _, _, path in cluster.sent]
    assert len(set(folders)) == len(folders) == (4 + 2) * 6
    for kwargs, load, path in cluster.sent:
        experiment = json.loads((path / "experiment.json").read_text())["experiment"]
        assert path.parent == tmp_path / "runs"
        assert experiment["configuration"] == kwargs
        assert experiment["seed"] == load.seed


@pytest.mark.parametrize("error", [DeployError("no\n memory"), EndpointGoneError("no memory")])
def test_an_error_of_a_configuration_is_recorded(
    cluster: Cluster, tmp_path: Path, error: Exception
) -> None:
    cluster.broken[2] = error
    result = tune(cluster, tmp_path)
    assert result.frame().note.tolist()[2:] == ["failed: no memory"] * 2
    assert result.frame().goodput.isna().sum() == 2
    tune(cluster, tmp_path)
    assert len(cluster.deployed) == 4 + 2, "a failure is not measured again"


def test_an_error_of_the_machine_ends_the_tuning(cluster: Cluster, tmp_path: Path) -> None:
    cluster.broken[2] = MissingPackageError("install it")
    with pytest.raises(MissingPackageError):
        tune(cluster, tmp_path)
    cluster.broken.clear()
    assert tune(cluster, tmp_path).complete


def test_one_process_at_a_time_works_in_a_folder(cluster: Cluster, tmp_path: Path) -> None:
    with (
        lock_folder(tmp_path, "tuning"),
        pytest.raises(RunError, match=f"{tmp_path} is in use by another tuning: wait for it"),
    ):
        tune(cluster, tmp_path)
    assert cluster.deployed == []
    assert tune(cluster, tmp_path).complete


def test_a_running_endpoint_cannot_be_tuned(cluster: Cluster, tmp_path: Path) -> None:
    elsewhere = Remote("http://there/v1", SecretStr("x"), ["m"], "m")
    with pytest.raises(SettingError, match="http://there/v1 was not deployed by this process"):
        tune(cluster, tmp_path, open=lambda spec: elsewhere)


def test_a_load_without_other_loads_is_sent_as_it_is(cluster: Cluster, tmp_path: Path) -> None:
    result = tune(cluster, tmp_path, loads=())
    assert {load.arrivals for _, load, _ in cluster.sent} == {LOAD.arrivals}
    assert result.frame().load.isna().all()
    assert "at 8" not in result.headline()


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (
            {"settings": {"max_num_seqs": [8, 4], "enable_prefix_caching": [True, False]}},
            r"settings.max_num_seqs was \[8, 2\] and is \[8, 4\]",
        ),
        (
            {"settings": {"max_num_seqs": [8, 2]}},
            r"settings.enable_prefix_caching was \[True, False\] and is None",
        ),
        ({"loads": [4]}, r"loads was \[4.0, 8.0\] and is \[4.0\]"),
        ({"repeats": 4}, "repeats was 3 and is 4"),
        ({"load": LOAD.at(8, seed=8)}, "load.seed was 7 and is 8"),
        ({"spec": ServiceSpec(model=ModelSpec(max_model_len=512))}, "model.max_model_len was None"),
    ],
)
def test_another_question_is_rejected_with_the_difference(
    cluster: Cluster, tmp_path: Path, changed: dict[str, Any], difference: str
) -> None:
    tune(cluster, tmp_path)
    deployed = len(cluster.deployed)
    with pytest.raises(SettingError, match=f"cannot be continued, because {difference}") as caught:
        tune(cluster, tmp_path, **changed)
    assert str(tmp_path) in str(caught.value)
    assert str(caught.value).count(" was ") == 1, "only what differs"
    assert len(cluster.deployed) == deployed
    assert tune(cluster, tmp_path, budget_min=5.0).complete, "the budget may change"


def test_what_the_platform_lacks_is_said_and_not_deployed(cluster: Cluster, tmp_path: Path) -> None:
    lines: list[str] = []
    settings = {"max_num_seqs": [8, 2], "quantization": [None, "fp8"]}
    result = tune(cluster, tmp_path, settings=settings, progress=lines.append)
    assert lines[0].startswith("quantization=fp8 is left out: it needs a GPU")
    assert result.left_out == (lines[0],)
    assert len(cluster.deployed) == 2


def test_gpus_of_the_deployment_divide_the_throughput(cluster: Cluster, tmp_path: Path) -> None:
    model = ModelSpec(accelerator="gpu", tensor_parallel_size=2)
    result = tune(cluster, tmp_path, spec=ServiceSpec(model=model))
    on_cpu = tune(cluster, tmp_path / "cpu")
    assert result.gpus == 2
    assert result.frontier().attrs["per"] == "GPU"
    half = on_cpu.frontier().tokens_per_gpu / 2
    assert result.frontier().tokens_per_gpu.tolist() == pytest.approx(half.tolist(), rel=0.05)
