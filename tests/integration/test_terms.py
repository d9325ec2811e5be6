"""A service without an engine on a cluster that another process started, after its user is gone.

Ray, Serve, the quota ledger, the actor that stops services, the store and the clocks are real.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.ray_head import plain_head

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(700)]

# Each deploys an application as `deploy` does, but one that needs no engine.
COMMON = """
import json, time
from serving.cluster import connection
from serving.deploy import status, terms_store
from serving.deploy.terms import Terms
from serving.quotas.actor import start_ledger
from workbench.endpoints import terms as endpoint_terms
from workbench.endpoints.terms import pass_on_messages, under_terms

cluster = connection.connect()
from ray import serve

def deploy(name, terms):
    @serve.deployment(name="echo", ray_actor_options={"num_cpus": 0})
    class Echo:
        def __call__(self, request):
            return "here"

    with under_terms(name, terms, cluster):
        start_ledger(name)
        serve.run(Echo.bind(), name=name, route_prefix=f"/{name}")

def wait_until(done, within_s=180):
    deadline = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.2)

def running():
    return sorted(status.details()["applications"])
"""

USER = (
    COMMON
    + """
serve.start(proxy_location="Disabled")
for name, terms in [
    # Those that end are the last, and have a minute: all of them run when the user leaves.
    ("kept", Terms(lease_minutes=60, dollars_per_replica_hour={"echo": 2.0})),
    ("unused", Terms(idle_minutes=1)),
    ("leased", Terms(lease_minutes=1)),
]:
    deploy(name, terms)
print("RESULT", json.dumps(running()), flush=True)
"""
)

LATER = (
    COMMON
    + """
wait_until(lambda: running() == ["kept"])
kept = status.service_status("kept")
lines = []
endpoint_terms.LISTEN_S = 0.2
short = Terms(lease_minutes=0.5)  # Half of it is time enough for the warning.
with under_terms("kept", short, cluster):
    pass
pass_on_messages("kept", short, cluster, lines.append)
wait_until(lambda: running() == [] and len(lines) == 2)
try:
    status.service_status("kept")
except Exception as error:
    message = str(error)
result = {
    "left": kept.lease_left_s, "dollars": kept.dollars_per_hour, "lines": lines, "gone": message,
    "unused": terms_store.load_state("unused").messages,
    "leased": terms_store.load_state("leased").messages,
}
print("RESULT", json.dumps(result), flush=True)
"""
)


def run_program(program: str, folder: Path, address: str) -> Any:
    """Run a program outside the repository; return what it prints as its result."""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "RAY_ADDRESS": address},
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [line for line in ran.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, ran.stdout[-2000:] + ran.stderr[-3000:]
    return json.loads(lines[0].removeprefix("RESULT "))


def test_services_stop_by_themselves_after_their_user_is_gone(tmp_path: Path) -> None:
    with plain_head(tmp_path) as head:
        began = time.monotonic()
        assert run_program(USER, tmp_path, head.address) == ["kept", "leased", "unused"]
        result = run_program(LATER, tmp_path, head.address)
        elapsed_s = time.monotonic() - began
    assert 3600 - elapsed_s <= result["left"] < 3600
    assert result["dollars"] == 2.0
    assert result["leased"][-1] == "leased stopped: its lease of 60 s ended"
    assert [line.partition(" for ")[0] for line in result["unused"]] == [
        "unused has had no request",
        "unused stopped: no request",
    ]
    warning, stopped = result["lines"]
    assert warning.startswith("the lease of kept ends in ")
    assert stopped == "kept stopped: its lease of 30 s ended"
    assert result["gone"] == "kept stopped: its lease of 30 s ended. Deploy it again."
