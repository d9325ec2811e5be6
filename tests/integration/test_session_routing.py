"""Session routing on two replicas: which replica answers each turn of a conversation."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.shared_service import Deployed

import workbench as wb
from workbench.endpoints.deployed import Endpoint

# The first test waits for three engines.
pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

CONVERSATIONS, TURNS = 12, 4


@pytest.fixture(scope="module")
def endpoint(deployed: Deployed) -> Iterator[Endpoint]:
    model = wb.ModelSpec(
        source="nano",
        num_cpus=0.5,
        kv_cache_gib=0.1,
        max_model_len=512,
        routing="session",
        scaling=wb.ScalingSpec(min_replicas=2, max_replicas=2),
    )
    spec = wb.ServiceSpec(name="sessions", route_prefix="/sessions", port=0, model=model)
    with wb.deploy(spec, progress=lambda line: None) as endpoint:
        yield endpoint


def test_every_turn_of_a_conversation_goes_to_one_replica(endpoint: Endpoint) -> None:
    load = wb.LoadSpec(
        arrivals=wb.ClosedLoop(max_concurrency=4),
        prompts=wb.Conversations(turns=TURNS, input=16, output=4),
        count=CONVERSATIONS,
        workers=1,
    )

    async def send() -> Any:
        return await wb.start_load(endpoint, load, progress=None)

    records = asyncio.run(send()).records
    assert len(records) == CONVERSATIONS * TURNS
    assert {record.status for record in records} == {"ok"}
    replicas = defaultdict(set)
    for record in records:
        replicas[record.request_id.rpartition("-")[0]].add(record.replica)
    assert len(replicas) == CONVERSATIONS
    assert all(len(used) == 1 for used in replicas.values())
    assert len(set.union(*replicas.values())) == 2


def test_a_session_of_any_client_stays(endpoint: Endpoint) -> None:
    headers = {
        "authorization": f"Bearer {endpoint.api_key.get_secret_value()}",
        "x-session-id": "a-session",
    }
    body = {"model": endpoint.model_id, "prompt": "What is TTFT?", "max_tokens": 2}
    url = f"{endpoint.base_url}/completions"
    replies = [httpx.post(url, json=body, headers=headers, timeout=60) for _ in range(8)]
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.headers["x-serving-replica"] for reply in replies}) == 1
