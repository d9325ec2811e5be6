"""Prefill and decode on separate replicas, with KV blocks that move through files on a CPU.

vLLM's CPU blocks hold 128 tokens, so that a shorter prompt moves nothing.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from support.shared_service import Deployed

import workbench as wb
from workbench.endpoints.deployed import Endpoint
from workbench.records import ReplicaSample

# The first test waits for three engines.
pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

BLOCK = 128
ASIDE = "Please read this first. The weather was fine, and nothing else happened. "
LONG: Any = [{"role": "user", "content": ASIDE * 12 + "What is continuous batching?"}]
SHORT: Any = [{"role": "user", "content": "What is continuous batching?"}]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kv")


@pytest.fixture(scope="module")
def endpoint(deployed: Deployed, storage: Path) -> Iterator[Endpoint]:
    side = wb.Side(num_cpus=0.5, kv_cache_gib=0.1)
    model = wb.ModelSpec(
        max_model_len=1024,
        engine_kwargs={"enable_prefix_caching": False},
        disaggregated=wb.Disaggregated(
            prefill=side,
            decode=side,
            connector="example",
            connector_options={"shared_storage_path": str(storage)},
        ),
    )
    spec = wb.ServiceSpec(name="split", route_prefix="/split", port=0, model=model)
    with wb.deploy(spec, progress=lambda line: None) as endpoint:
        yield endpoint


def ask(endpoint: Endpoint, messages: Any) -> Any:
    request: Any = {"messages": messages, "max_tokens": 40, "temperature": 0}
    return endpoint.client.chat.completions.create(model=endpoint.model_id, **request)


def blocks(storage: Path) -> set[Path]:
    """One folder for each sequence of whole blocks that was saved.

    The connector saves no token of a shorter prompt, but writes the files of its layers.
    """
    from safetensors.torch import load_file

    return {
        file.parent
        for file in storage.glob("*/*.safetensors")
        if load_file(file)["kv_cache"].numel()
    }


def test_both_sides_run(endpoint: Endpoint) -> None:
    status = endpoint.status()
    names = {endpoint.deployment, f"{endpoint.deployment}-prefill"}
    running = {name: state.running for name, state in status.deployments.items() if name in names}
    assert running == dict.fromkeys(names, 1)


def test_a_long_prompt_moves_its_blocks(endpoint: Endpoint, storage: Path) -> None:
    before = blocks(storage)
    reply = ask(endpoint, LONG)
    assert reply.usage.prompt_tokens > 2 * BLOCK
    saved = blocks(storage) - before
    assert saved
    (layers,) = {len(list(folder.glob("*.safetensors"))) for folder in saved}
    assert layers == 4  # of the embedded model
    again = ask(endpoint, LONG)
    assert again.choices[0].message.content == reply.choices[0].message.content
    assert blocks(storage) == before | saved


def test_the_answer_is_that_of_one_replica(endpoint: Endpoint, deployed: Deployed) -> None:
    for messages in (SHORT, LONG):
        split, whole = ask(endpoint, messages), ask(deployed.endpoint, messages)
        assert split.choices[0].message.content == whole.choices[0].message.content
        assert split.usage.prompt_tokens == whole.usage.prompt_tokens


def test_a_short_prompt_moves_nothing(endpoint: Endpoint, storage: Path) -> None:
    shutil.rmtree(storage)
    storage.mkdir()
    assert ask(endpoint, SHORT).usage.prompt_tokens < BLOCK
    assert blocks(storage) == set()


def test_an_answer_of_a_minimum_length(endpoint: Endpoint) -> None:
    request: Any = {"messages": SHORT, "max_tokens": 12, "extra_body": {"min_tokens": 12}}
    reply = endpoint.client.chat.completions.create(model=endpoint.model_id, **request)
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 12


def test_a_stream(endpoint: Endpoint) -> None:
    request: Any = {"messages": SHORT, "max_tokens": 20, "temperature": 0, "stream": True}
    stream = endpoint.client.chat.completions.create(model=endpoint.model_id, **request)
    text = "".join(event.choices[0].delta.content or "" for event in stream if event.choices)
    assert text.startswith("Continuous batching is")


def test_the_gate_is_in_front(endpoint: Endpoint) -> None:
    with pytest.raises(openai.AuthenticationError):
        endpoint.client.with_options(api_key="sk-an-unknown-key-of-enough-length").models.list()
    with pytest.raises(openai.NotFoundError):
        endpoint.client.chat.completions.create(model="nothing", messages=SHORT)


def test_telemetry_and_cost_of_both_sides(endpoint: Endpoint) -> None:
    load = wb.LoadSpec(
        arrivals=wb.ClosedLoop(max_concurrency=2),
        prompts=wb.RandomPrompts(input=300, output=8),
        count=12,
        workers=1,
    )

    samples: list[Any] = []
    names = {endpoint.deployment, f"{endpoint.deployment}-prefill"}

    def read(name: str) -> int:
        counts = [
            sample.prompt_tokens or 0
            for sample in samples
            if isinstance(sample, ReplicaSample) and sample.deployment == name
        ]
        return max(counts, default=0)

    def is_counted() -> bool:
        return read(f"{endpoint.deployment}-prefill") >= 12 * 300 and read(endpoint.deployment) > 0

    async def measure() -> Any:
        with wb.Telemetry(endpoint, wb.client.start_clock(), samples.append):
            result = await wb.start_load(endpoint, load, progress=None)
            deadline = time.monotonic() + 60
            while not is_counted():
                assert time.monotonic() < deadline, {name: read(name) for name in names}
                await asyncio.sleep(0.5)
            return result

    assert {record.status for record in asyncio.run(measure()).records} == {"ok"}
    assert wb.Prices(cpu_hour=1).per_replica_hour(endpoint.spec) == dict.fromkeys(names, 0.5)
