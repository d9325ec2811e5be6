"""Runs in a real MLflow server and a real Weights & Biases client, in environments of their own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import scripts
from support.example_run import made_run
from support.processes import end_process

from workbench.export.mlflow_server import log_to_mlflow
from workbench.metrics.summary import summarize
from workbench.runs.run import Run

pytestmark = [pytest.mark.clients, pytest.mark.timeout(400)]

START_S = 120.0
READ_RUN = """
import json, sys
from mlflow import MlflowClient

client = MlflowClient(sys.argv[1])
[run] = client.search_runs([client.get_experiment_by_name("speed").experiment_id])
folder = client.download_artifacts(run.info.run_id, "", sys.argv[2])
print(json.dumps([run.info.run_name, run.info.status, run.data.params, run.data.metrics]))
"""
LOG_RUN = """
import sys
sys.path.append(sys.argv[1])  # last, so that the project's own packages have precedence
import plotly.graph_objects as go
from workbench.export.weights_and_biases import log_to_wandb
from workbench.runs.run import Run

figure = go.Figure().add_scatter(x=[1], y=[2])
log_to_wandb(Run.open(sys.argv[2]), figures={"curve": figure}, mode="offline", dir=sys.argv[3])
"""
READ_LOG = """
import json, struct, sys
from pathlib import Path
from wandb.proto.wandb_internal_pb2 import Record

# The format of LevelDB's logs: blocks of 32 KiB, each record in one part or several.
data, at, parts, config, history = Path(sys.argv[1]).read_bytes(), 7, b"", {}, {}
while at + 7 <= len(data):
    if 32768 - at % 32768 < 7:
        at += 32768 - at % 32768
    _, length, kind = struct.unpack_from("<IHB", data, at)
    parts += data[at + 7 : at + 7 + length]
    at += 7 + length
    if kind in (1, 4):  # the whole record, or its last part
        record, parts = Record.FromString(parts), b""
        for item in record.run.config.update:
            config[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
        for item in record.history.item:
            history[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
print(json.dumps([config, history]))
"""


def environment(name: str) -> Path:
    """Return the folder of a client's environment, or skip the test."""
    clients = scripts.load("clients")
    reason = clients.skip_reason(name)
    if reason is not None:
        pytest.skip(reason)
    return Path(clients.ENVIRONMENTS / name)


def finished_run(root: Path) -> Run:
    run = made_run(root)
    run.finish(summarize(run.records()))
    (run.path / "report.html").write_text("<html>report</html>")
    return run


@pytest.fixture
def mlflow(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server with its data in a temporary folder: its URL, and the Python of its environment."""
    binaries = environment("mlflow") / "bin"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = [f"--backend-store-uri=sqlite:///{tmp_path}/mlflow.db"]
    store += [f"--artifacts-destination={tmp_path}/artifacts", "--workers=1"]
    command = [str(binaries / "mlflow"), "server", "--host=127.0.0.1", f"--port={port}", *store]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_S
        while not answers(url):
            assert process.poll() is None, (tmp_path / "server.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.2)
        yield url, binaries / "python"
    finally:
        end_process(process)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=10, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def test_mlflows_own_client_reads_what_was_logged(mlflow: tuple[str, Path], tmp_path: Path) -> None:
    import plotly.graph_objects as go

    url, python = mlflow
    run = finished_run(tmp_path)
    figure = go.Figure().add_scatter(x=[1], y=[2], name="a curve")
    address = log_to_mlflow(
        run, tracking_uri=url, experiment="speed", figures={"Load, and cost": figure}
    )
    folder = tmp_path / "downloaded"
    folder.mkdir()
    output = subprocess.check_output([python, "-c", READ_RUN, url, folder], text=True)
    name, status, params, metrics = json.loads(output.splitlines()[-1])
    assert (name, status) == (run.run_id, "FINISHED")
    assert address.startswith(f"{url}/#/experiments/")
    assert params["load.arrivals.kind"] == "stages"
    summary = run.summary()
    assert summary is not None
    assert metrics["completed"] == summary.completed == 200
    assert metrics["p99_ttft_ms"] == pytest.approx(summary.p99_ttft_ms)
    assert (folder / "report.html").read_text() == "<html>report</html>"
    for file in ("experiment.json", "summary.json"):
        assert (folder / file).read_bytes() == (run.path / file).read_bytes()
    assert "a curve" in (folder / "figures" / "load-and-cost.html").read_text()


def test_file_of_weights_and_biases_has_what_was_logged(tmp_path: Path) -> None:
    place = environment("wandb")
    [packages] = place.glob("lib/python*/site-packages")
    run = finished_run(tmp_path)
    arguments = [str(packages), str(run.path), str(tmp_path)]
    subprocess.run([sys.executable, "-c", LOG_RUN, *arguments], check=True, timeout=200)
    [written] = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    output = subprocess.check_output(
        [place / "bin" / "python", "-c", READ_LOG, written], text=True, timeout=120
    )
    config, history = json.loads(output.splitlines()[-1])
    assert config["load.arrivals.kind"] == "stages"
    assert history["completed"] == 200
    assert history["curve._type"] == "plotly-file"
    kept: list[Any] = list(tmp_path.glob("wandb/offline-run-*/files/media/plotly/*.json"))
    assert len(kept) == 1
