"""Ray's KV connectors can be registered by several processes at once.

Importing Ray Serve LLM changes the root logger, so every test has a process of its own.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# Between the two checks of a connector, another process registers it: the first check finds no
# connector, the second finds it. `lost` names the connectors for which that happens.
PROGRAM = """
import sys
from collections import Counter
from ray.llm._internal.serve.utils.registry import get_registry

call, lost = sys.argv[1], set(sys.argv[2].split(","))
registry = get_registry("kv_connector_backend")
checks, own = Counter(), registry.contains

def contains(name):
    checks[name] += 1
    return own(name) or (name in lost and checks[name] > 1)

registry.contains = contains
try:
    if call == "register":
        from serving.compat.kv_connectors import register_kv_connectors
        register_kv_connectors()
    import ray.llm._internal.serve.engines.vllm.kv_transfer.factory as factory
except ValueError as error:
    print("ValueError", error)
else:
    names = sorted(factory.BUILTIN_BACKENDS)
    print(",".join(n for n in names if factory.KVConnectorBackendFactory.is_registered(n)))
print("vllm" in sys.modules)
"""
CONNECTORS = "LMCacheConnectorV1,MoRIIOConnector,MultiConnector,NixlConnector"


def run(call: str, lost: str) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, call, lost], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout.splitlines()


def test_upstreams_own_import_fails_if_another_process_is_faster() -> None:
    """Remove `serving.compat.kv_connectors` once this fails: Ray has fixed the race then."""
    message, _ = run("import", "NixlConnector")
    assert message.startswith("ValueError kv_connector_backend 'NixlConnector' is already")


def test_a_faster_process_does_not_matter() -> None:
    assert run("register", "NixlConnector") == [CONNECTORS, "False"]


def test_not_even_one_that_is_faster_every_time() -> None:
    assert run("register", CONNECTORS) == [CONNECTORS, "False"]


def test_another_error_is_raised() -> None:
    program = PROGRAM.replace("registry.contains = contains", "registry.register = None")
    ran = subprocess.run(
        [sys.executable, "-c", program, "register", ""], capture_output=True, text=True, timeout=120
    )
    assert "TypeError: 'NoneType' object is not callable" in ran.stderr
