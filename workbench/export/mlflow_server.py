"""Log a run to an MLflow tracking server, over its REST API.

MLflow's own package is not needed, since its dependencies conflict with those of the engines. The
API is that of https://mlflow.org/docs/latest/rest-api.html, version 2.0, with its limits per
request. Files are uploaded through the server (`mlflow-artifacts:`, the default since MLflow 2.0).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlsplit

from workbench.endpoints.connection import NO_KEY, make_connection
from workbench.endpoints.failures import explain_answer, explain_failure
from workbench.errors import RunError, SettingError
from workbench.export.artifacts import artifacts_of
from workbench.export.facts import metrics_of, parameters_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from workbench.runs.run import Run

TRACKING_URI = "MLFLOW_TRACKING_URI"
MAX_PARAMETERS, MAX_METRICS = 100, 1000
"""Entries that one `runs/log-batch` may have."""
MAX_VALUE_LENGTH = 500
"""Characters of a parameter's value that every server since MLflow 1.28 accepts."""
TIMEOUT_S = 60.0
_NAME = re.compile(r"[^\w\-. :/]")


def log_to_mlflow(
    run: Run,
    *,
    tracking_uri: str | None = None,
    experiment: str = "llm-serving-workbench",
    figures: Mapping[str, go.Figure] | None = None,
    **connection: Any,
) -> str:
    """Log the parameters, the metrics, the figures and the report of a finished run.

    A parameter that is longer than MLflow allows is cut; the artifact `experiment.json` has the
    whole. If something fails after the run was created in MLflow, it is marked as failed there.

    Args:
        run: The run.
        tracking_uri: URL of the server; default: the environment variable `MLFLOW_TRACKING_URI`.
        experiment: Name of the experiment, which is created if it does not exist.
        figures: Figures by name, which become HTML files.
        connection: `verify`, `ca_bundle`, `proxy` and `headers`, as for `workbench.remote`. The
            environment variables `MLFLOW_TRACKING_TOKEN`, or `MLFLOW_TRACKING_USERNAME` and
            `MLFLOW_TRACKING_PASSWORD`, are used as MLflow uses them.

    Returns:
        The address of the run's page.

    Raises:
        RunError: The run is not finished, or the server refused something.
        SettingError: The server cannot be reached, or stores files where only its own client can.
    """
    summary = run.summary()
    if summary is None:
        raise RunError(f"run {run.run_id} has no summary: finish it before it is logged")
    uri = (tracking_uri or os.environ.get(TRACKING_URI) or "").rstrip("/")
    if urlsplit(uri).scheme not in ("http", "https"):
        raise SettingError(
            f"tracking_uri must be the URL of a server, such as 'http://host:5000', got {uri!r}"
        )
    with _Server(uri, connection) as server:
        experiment_id = server.experiment_id(experiment)
        start_ms = _start_ms(run)
        logged = server.create_run(experiment_id, run.run_id, start_ms)
        status, end_ms = "FAILED", start_ms
        try:
            server.log_parameters(logged["run_id"], parameters_of(run))
            server.log_metrics(logged["run_id"], metrics_of(summary), start_ms)
            for name, content in artifacts_of(run, figures or {}):
                server.upload(logged["artifact_uri"], name, content)
            status, end_ms = "FINISHED", start_ms + round((summary.duration or 0) * 1e3)
        finally:
            server.end_run(logged["run_id"], status, end_ms)
    return f"{uri}/#/experiments/{experiment_id}/runs/{logged['run_id']}"


def _start_ms(run: Run) -> int:
    date = run.document.get("date")
    return round((datetime.fromisoformat(date).timestamp() if date else time.time()) * 1e3)


class _Server:
    """The calls of MLflow's REST API that `log_to_mlflow` needs."""

    def __init__(self, uri: str, connection: Mapping[str, Any]) -> None:
        import httpx2

        self._uri = uri
        self._connection = make_connection(uri, NO_KEY, **connection)
        self._client = httpx2.Client(
            **self._connection.client_options(),
            timeout=TIMEOUT_S,
            auth=_login(),
            headers=_token() | self._connection.plain_headers(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def experiment_id(self, name: str) -> str:
        """Return the id of an experiment, which is created if it does not exist."""
        found = self._call("GET", "experiments/get-by-name", True, experiment_name=name)
        if found is None:
            return str(self._call("POST", "experiments/create", name=name)["experiment_id"])
        if found["experiment"].get("lifecycle_stage") == "deleted":
            raise RunError(
                f"experiment {name!r} of {self._uri} is deleted; restore it, or give another name"
            )
        return str(found["experiment"]["experiment_id"])

    def create_run(self, experiment_id: str, name: str, start_ms: int) -> dict[str, Any]:
        """Create a run, and return MLflow's facts about it."""
        body: dict[str, Any] = {"experiment_id": experiment_id, "run_name": name}
        body["start_time"] = start_ms
        info: dict[str, Any] = self._call("POST", "runs/create", **body)["run"]["info"]
        return info

    def log_parameters(self, run_id: str, values: Mapping[str, Any]) -> None:
        """Log parameters as texts."""
        entries = (
            {"key": _NAME.sub("_", name), "value": str(value)[:MAX_VALUE_LENGTH]}
            for name, value in values.items()
        )
        for batch in _batches(entries, MAX_PARAMETERS):
            self._call("POST", "runs/log-batch", run_id=run_id, params=batch)

    def log_metrics(self, run_id: str, values: Mapping[str, float], at_ms: int) -> None:
        """Log metrics at step 0."""
        entries = (
            {"key": name, "value": float(value), "timestamp": at_ms, "step": 0}
            for name, value in values.items()
        )
        for batch in _batches(entries, MAX_METRICS):
            self._call("POST", "runs/log-batch", run_id=run_id, metrics=batch)

    def upload(self, artifact_uri: str, name: str, content: bytes) -> None:
        """Upload a file to the run's artifacts."""
        parts = urlsplit(artifact_uri)
        if parts.scheme != "mlflow-artifacts":
            raise SettingError(
                f"{self._uri} stores artifacts at {parts.scheme or 'a local path'}, where only its "
                "own client can write; start it with --serve-artifacts (its default) and without "
                "--default-artifact-root"
            )
        path = quote(f"{parts.path.strip('/')}/{name}")
        url = f"{self._uri}/api/2.0/mlflow-artifacts/artifacts/{path}"
        self._send("PUT", url, {"content": content})

    def end_run(self, run_id: str, status: str, end_ms: int) -> None:
        """Set the state of a run and its end."""
        self._call("POST", "runs/update", run_id=run_id, status=status, end_time=end_ms)

    def _call(self, method: str, path: str, missing: bool = False, /, **values: Any) -> Any:
        """Call the API; with `missing`, return None for what does not exist."""
        url, place = f"{self._uri}/api/2.0/mlflow/{path}", "params" if method == "GET" else "json"
        answer = self._send(method, url, {place: values}, missing=missing)
        return None if answer is None else answer.json()

    def _send(
        self, method: str, url: str, content: Mapping[str, Any], *, missing: bool = False
    ) -> Any:
        import httpx2

        proxy = self._connection.proxy_name
        try:
            answer = self._client.request(method, url, **content)
        except (httpx2.HTTPError, httpx2.InvalidURL) as problem:
            reason = explain_failure(problem, proxy) or type(problem).__name__
            raise SettingError(f"{self._uri} cannot be reached: {reason}") from None
        if answer.status_code == 200:
            return answer
        error = _error(answer)
        if missing and error.get("error_code") == "RESOURCE_DOES_NOT_EXIST":
            return None
        refusal = f"HTTP {answer.status_code}: {str(error.get('message', ''))[:200]}"
        reason = explain_answer(answer.status_code, answer.headers, proxy) or refusal
        raise RunError(f"{self._uri} refused {method} {urlsplit(url).path}: {reason}")


def _error(answer: Any) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _login() -> tuple[str, str] | None:
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    return (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None


def _token() -> dict[str, str]:
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token and _login() is None else {}


def _batches(entries: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(entries, size)):
        yield batch
