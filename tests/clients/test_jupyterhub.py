"""deploy/jupyterhub_config.py with a real JupyterHub: three users of a class on one Ray cluster.

The class and its actor are real; Ray Serve is replaced, so that no engine starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import scripts
from support.jupyterlab import wait_for_port
from support.paths import ROOT
from support.processes import end_process
from websocket import create_connection

import workbench as wb
from serving.cluster import connection, user_folder
from serving.cluster.ports import free_port

CLIENTS = scripts.load("clients")
pytestmark = [
    pytest.mark.clients,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        CLIENTS.skip_reason("jupyterhub") is not None, reason=str(CLIENTS.skip_reason("jupyterhub"))
    ),
]
USERS = ("ada", "bob", "cleo")
PASSWORD = "the password of the class"
START_TIMEOUT_S, CELL_TIMEOUT_S = 180.0, 240.0
HUB = f"""
load_subconfig({str(ROOT / "deploy" / "jupyterhub_config.py")!r})
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = {PASSWORD!r}
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = {{folder!r}} + "/{{{{username}}}}"
c.Spawner.http_timeout = c.Spawner.start_timeout = {START_TIMEOUT_S}
c.Spawner.args = ["--allow-root"]
c.Spawner.environment |= {{environment!r}}
c.JupyterHub.bind_url = "http://127.0.0.1:{{port}}"
c.JupyterHub.hub_port = {{hub_port}}
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{{proxy_port}}"
"""
SEAT = """
import ray, workbench as wb
seat = wb.classroom.join()
print("SEAT", seat.name, seat.lease.route, seat.lease.max_replicas)
print("CLUSTER", ray.get_runtime_context().gcs_address)
try:
    seat.deploy(wb.ModelSpec(scaling=wb.ScalingSpec(max_replicas=5)))
except wb.LeaseError as error:
    print("REFUSED", error)
try:
    wb.classroom.join(OTHER)
except wb.LeaseError as error:
    print("FOREIGN", error)
"""


class NoApplications:
    """Takes the place of Ray Serve in the actor of the class."""

    def replicas(self) -> dict[str, int]:
        return {}

    def delete(self, application: str) -> None:
        pass


@pytest.fixture
def class_keys(ray_alone: None, tmp_path: Path) -> Iterator[Path]:
    """The file of keys of a class that is open on a Ray cluster; every lease has its own cap."""
    from ray import cloudpickle

    keys = {user: wb.classroom.new_key() for user in USERS}
    ends_at = datetime.now(UTC) + timedelta(hours=1)
    leases = [
        wb.classroom.Lease(
            tenant=wb.Tenant(name=user, key_hash=wb.classroom.key_hash(key)),
            max_replicas=number,
            ends_at=ends_at,
        )
        for number, (user, key) in enumerate(keys.items(), 1)
    ]
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    room = wb.classroom.open(leases, applications=NoApplications)
    file = tmp_path / "keys.txt"
    file.touch(mode=0o600)
    file.write_text("".join(f"{user} {key}\n" for user, key in keys.items()))
    yield file
    room.close()
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def hub(class_keys: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a JupyterHub for the class."""
    kernel = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]}
    kernels = tmp_path / "jupyter" / "kernels" / "python3"
    kernels.mkdir(parents=True)
    (kernels / "kernel.json").write_text(
        json.dumps(kernel | {"display_name": "Python 3", "language": "python"})
    )
    port = free_port()
    config = tmp_path / "hub.py"
    settings = {"JUPYTER_PATH": str(tmp_path / "jupyter"), "PYTHONPATH": str(ROOT)}
    config.write_text(
        HUB.format(
            folder=str(tmp_path / "homes"),
            environment=settings,
            port=port,
            hub_port=free_port(),
            proxy_port=free_port(),
        )
    )
    cluster = connection.current()
    assert cluster is not None
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or user_folder.create_token())
    programs = CLIENTS.ENVIRONMENTS / "jupyterhub" / "bin"
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "WORKBENCH_CLASS_KEYS": str(class_keys),
        "RAY_ADDRESS": cluster.address,
        "RAY_AUTH_TOKEN": token.read_text().strip(),
    }
    command = [str(programs / "jupyterhub"), f"--config={config}"]
    with (tmp_path / "hub.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log)
    try:
        wait_for_port(port)
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: answers(f"{address}/hub/api"), "the hub")
        yield address
    finally:
        end_process(process)


def answers(url: str) -> bool:
    """Whether it answers; while the hub starts, its proxy may not in time."""
    try:
        return httpx.get(url, timeout=30).is_success
    except httpx.HTTPError:
        return False


def wait_for(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not done():
        assert time.monotonic() < deadline, f"{what} has not started"
        time.sleep(1)


def log_in(hub: str, user: str, password: str = PASSWORD) -> httpx.Response:
    """Ask for a token as a user does who has only a password."""
    login = {"auth": {"username": user, "password": password}}
    return httpx.post(f"{hub}/hub/api/users/{user}/tokens", json=login, timeout=60)


def start_server(hub: str, user: str) -> httpx.Client:
    """Log in, start the user's server, and return a client of it."""
    answer = log_in(hub, user)
    assert answer.status_code == 201, answer.text
    headers = {"Authorization": f"token {answer.json()['token']}"}
    client = httpx.Client(headers=headers, timeout=START_TIMEOUT_S)
    started = client.post(f"{hub}/hub/api/users/{user}/server")
    assert started.status_code in (201, 202), started.text

    def ready() -> bool:
        return bool(client.get(f"{hub}/hub/api/users/{user}").json()["servers"][""]["ready"])

    wait_for(ready, f"the server of {user}")
    client.base_url = httpx.URL(f"{hub}/user/{user}")
    return client


def run_cell(server: httpx.Client, source: str) -> str:
    """Run a cell in a new kernel of the server, and return what it printed."""
    kernel = server.post("/api/kernels", json={"name": "python3"}).raise_for_status().json()["id"]
    url = str(server.base_url).replace("http:", "ws:") + f"api/kernels/{kernel}/channels"
    header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "version": "5.3"}
    header |= {"username": "", "session": uuid.uuid4().hex, "date": ""}
    content = {"code": source, "silent": False, "store_history": False, "allow_stdin": False}
    request = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
    authorization = f"Authorization: {server.headers['Authorization']}"
    channels = create_connection(url, header=[authorization], timeout=CELL_TIMEOUT_S)
    channels.send(json.dumps(request | {"channel": "shell"}))
    printed = ""
    while True:
        message: dict[str, Any] = json.loads(channels.recv())
        if message["parent_header"].get("msg_id") != header["msg_id"]:
            continue
        content = message["content"]
        if message["msg_type"] in ("stream", "error"):
            printed += content.get("text") or "\n".join(content["traceback"])
        if message["msg_type"] == "status" and content["execution_state"] == "idle":
            break
    channels.close()
    server.delete(f"/api/kernels/{kernel}").raise_for_status()
    return printed


def test_three_users_of_a_hub_have_their_leases_on_one_cluster(hub: str) -> None:
    cluster = connection.current()
    assert cluster is not None
    with ExitStack() as ends:
        servers = {user: ends.enter_context(closing(start_server(hub, user))) for user in USERS}
        for number, user in enumerate(USERS, 1):
            other = USERS[number % len(USERS)]
            printed = run_cell(servers[user], SEAT.replace("OTHER", repr(other)))
            assert f"SEAT {user} /{user} {number}\n" in printed
            assert f"CLUSTER {cluster.address}\n" in printed
            assert f"REFUSED tenant {user!r}: max_replicas must be at most {number}" in printed
            assert f"FOREIGN tenant {other!r} has no lease in this class with that key" in printed


def test_who_has_no_lease_or_password_cannot_log_in(hub: str) -> None:
    assert log_in(hub, "eve").status_code == 403
    assert log_in(hub, "ada", password="another").status_code == 403
    assert log_in(hub, "ada").status_code == 201
