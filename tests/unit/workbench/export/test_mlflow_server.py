"""The calls of MLflow's REST API, against a scripted server that enforces MLflow's limits."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from support.records import record

from workbench.errors import RunError, SettingError
from workbench.export.mlflow_server import log_to_mlflow
from workbench.metrics.summary import summarize
from workbench.runs.run import Run

API = "/api/2.0/mlflow/"
FILES = "/api/2.0/mlflow-artifacts/artifacts/"


class Tracker:
    """What a server has received. `artifact_root` and `failing` change its answers."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.params: dict[str, str] = {}
        self.metrics: dict[str, float] = {}
        self.files: dict[str, bytes] = {}
        self.statuses: list[str] = []
        self.calls: list[str] = []
        self.authorization: set[str | None] = set()
        self.artifact_root = "mlflow-artifacts:/1/abc/artifacts"
        self.failing: str | None = None
        self.url = ""

    def answer(self, path: str, values: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.calls.append(path)
        if path == self.failing:
            return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "too long"}
        if path == "experiments/get-by-name":
            if values["experiment_name"] in self.experiments:
                return 200, {"experiment": {"experiment_id": "1", "lifecycle_stage": "active"}}
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}
        if path == "experiments/create":
            self.experiments[values["name"]] = "1"
            return 200, {"experiment_id": "1"}
        if path == "runs/create":
            info = {"run_id": "abc", "artifact_uri": self.artifact_root}
            return 200, {"run": {"info": info}}
        if path == "runs/log-batch":
            params, metrics = values.get("params", []), values.get("metrics", [])
            if len(params) > 100 or len(metrics) > 1000:
                return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "batch"}
            self.params |= {entry["key"]: entry["value"] for entry in params}
            self.metrics |= {entry["key"]: entry["value"] for entry in metrics}
        if path == "runs/update":
            self.statuses.append(values["status"])
        return 200, {}


@contextmanager
def tracker() -> Iterator[Tracker]:
    state = Tracker()

    class Handler(BaseHTTPRequestHandler):
        def _reply(self, status: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _body(self) -> bytes:
            state.authorization.add(self.headers["authorization"])
            return self.rfile.read(int(self.headers["content-length"] or 0))

        def do_GET(self) -> None:
            self._body()
            parts = urlsplit(self.path)
            values = {name: value[0] for name, value in parse_qs(parts.query).items()}
            self._reply(*state.answer(parts.path.removeprefix(API), values))

        def do_POST(self) -> None:
            body = json.loads(self._body())
            self._reply(*state.answer(self.path.removeprefix(API), body))

        def do_PUT(self) -> None:
            state.files[unquote(self.path.removeprefix(FILES))] = self._body()
            self._reply(200, {})

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("URI", "TOKEN", "USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)


def made(root: Path, **parameters: Any) -> Run:
    run = Run.create(root, {"parameters": parameters}, run_id="run-1")
    run.finish(summarize([record(0.0, 0.1, 0.3)], duration_s=2.0))
    return run


def test_parameters_metrics_and_files(tmp_path: Path) -> None:
    import plotly.graph_objects as go

    many = {f"p{number}": number for number in range(250)}
    run = made(tmp_path, **many, long="x" * 9000, api_key="sk-secret", **{"odd[name]": 1})
    (run.path / "report.html").write_text("<html>report</html>")
    figure = go.Figure().add_scatter(x=[1], y=[2], name="a curve")
    with tracker() as server:
        address = log_to_mlflow(run, tracking_uri=server.url, figures={"A curve?": figure})
        log_to_mlflow(run, tracking_uri=server.url)
    assert address == f"{server.url}/#/experiments/1/runs/abc"
    assert server.calls.count("experiments/create") == 1
    assert {f"parameters.{name}": str(value) for name, value in many.items()}.items() <= (
        server.params.items()
    )
    assert set(server.params["parameters.long"]) == {"x"}
    assert server.params["parameters.odd_name_"] == "1"
    assert "sk-secret" not in json.dumps(server.params)
    assert server.metrics["mean_ttft_ms"] == pytest.approx(100)
    assert server.metrics["request_throughput"] == 0.5
    assert server.files["1/abc/artifacts/report.html"] == b"<html>report</html>"
    assert b"a curve" in server.files["1/abc/artifacts/figures/a-curve.html"]
    assert "1/abc/artifacts/experiment.json" in server.files
    assert server.statuses == ["FINISHED", "FINISHED"]


def test_failure_is_marked_and_named(tmp_path: Path) -> None:
    with tracker() as server:
        server.failing = "runs/log-batch"
        with pytest.raises(RunError, match=r"refused POST .*log-batch: HTTP 400: too long"):
            log_to_mlflow(made(tmp_path), tracking_uri=server.url)
    assert server.statuses == ["FAILED"]


def test_store_that_only_the_client_can_write(tmp_path: Path) -> None:
    with tracker() as server:
        server.artifact_root = "s3://bucket/1/abc"
        with pytest.raises(SettingError, match="stores artifacts at s3"):
            log_to_mlflow(made(tmp_path), tracking_uri=server.url)
    assert server.statuses == ["FAILED"]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, {None}),
        ({"TOKEN": "abc"}, {"Bearer abc"}),
        ({"USERNAME": "ada", "PASSWORD": "pw"}, {"Basic YWRhOnB3"}),
    ],
)
def test_login_of_the_environment(
    variables: dict[str, str],
    expected: set[str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    with tracker() as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        log_to_mlflow(made(tmp_path))
    assert server.authorization == expected


def test_invalid_input(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="run new has no summary"):
        log_to_mlflow(Run.create(tmp_path, {}, run_id="new"), tracking_uri="http://host")
    run = made(tmp_path)
    with pytest.raises(SettingError, match="such as 'http://host:5000', got ''"):
        log_to_mlflow(run)
    with pytest.raises(SettingError, match="cannot be reached: ConnectError"):
        log_to_mlflow(run, tracking_uri="http://127.0.0.1:9")
