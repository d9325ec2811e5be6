"""vLLM's Rust front end on a real engine. The reference is the one in Python on the same model.

`make rust-frontend` fetches its program, which vLLM's CPU build does not have.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
from support.shared_service import Deployed

import workbench as wb
from serving.cluster.supervisor import descendants
from serving.compat.vllm_rust import PATH_VARIABLE, rust_program
from serving.errors import MissingPackageError
from workbench.endpoints.deployed import Endpoint

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

QUESTION = [{"role": "user", "content": "What is a token?"}]
GREEDY = {"temperature": 0, "max_tokens": 24}
USAGE = {"stream_options": {"include_usage": True}}


class Rust(NamedTuple):
    """The service with the Rust front end, what its deployment said, and one without."""

    endpoint: Endpoint
    progress: list[str]
    python: Endpoint


@pytest.fixture(scope="module")
def rust(deployed: Deployed) -> Iterator[Rust]:
    try:
        program = rust_program()
    except MissingPackageError as error:
        pytest.skip(str(error))
    model = wb.ModelSpec(
        id=deployed.endpoint.model_id,
        max_model_len=1024,
        kv_cache_gib=0.25,
        frontend="rust",
        env={PATH_VARIABLE: str(program)},
    )
    spec = wb.ServiceSpec(name="rust", route_prefix="/rust", port=0, model=model)
    lines: list[str] = []
    with wb.deploy(spec, progress=lines.append) as endpoint:
        yield Rust(endpoint, lines, deployed.endpoint)


def post(endpoint: Endpoint, path: str, **fields: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {endpoint.api_key.get_secret_value()}"}
    body = {"model": endpoint.model_id} | fields
    return httpx.post(f"{endpoint.base_url}/{path}", json=body, headers=headers, timeout=120)


def events(content: bytes) -> list[dict[str, Any]]:
    """The events of a stream as JSON, without `[DONE]`."""
    data = re.findall(rb"^data: (\{.*\})$", content, re.MULTILINE)
    assert content.rstrip().endswith(b"data: [DONE]")
    return [json.loads(event) for event in data]


def answer(reply: httpx.Response) -> dict[str, Any]:
    """The parts of a stream on which both front ends agree."""
    parts = events(reply.content)
    choices = [choice for part in parts for choice in part["choices"]]
    usage = next((part["usage"] for part in parts if part.get("usage")), None)
    deltas = [choice.get("delta", {}).get("content") or choice.get("text") for choice in choices]
    return {
        "text": "".join(filter(None, deltas)),
        "finish": [c["finish_reason"] for c in choices if c.get("finish_reason")],
        "usage": usage and (usage["prompt_tokens"], usage["completion_tokens"]),
        "model": {part["model"] for part in parts},
    }


def is_from_rust(reply: httpx.Response) -> bool:
    """Its ids have 8 hexadecimal digits, and those of the front end in Python have more."""
    return re.search(rb'"id":"\w+-[0-9a-f]{8}"', reply.content) is not None


def wait_until(condition: Callable[[], bool], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)


def counts(endpoint: Endpoint) -> tuple[int, int]:
    """The tokens that the owner was charged."""
    usage: Any = endpoint.usage().loc["owner"]
    return int(usage["prompt_tokens"]), int(usage["output_tokens"])


def metric(endpoint: Endpoint, name: str) -> float:
    headers = {"authorization": f"Bearer {endpoint.api_key.get_secret_value()}"}
    page = httpx.get(f"{endpoint.base_url.removesuffix('/v1')}/metrics", headers=headers).text
    return sum(float(value) for value in re.findall(rf"^{name}{{.*}} (\S+)$", page, re.MULTILINE))


def test_the_deployment_names_the_front_end(rust: Rust) -> None:
    (line,) = [line for line in rust.progress if "front end" in line]
    assert "vLLM's HTTP front end in Rust" in line


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": QUESTION} | GREEDY | USAGE,
        {"messages": QUESTION} | GREEDY,
        {"messages": QUESTION, "temperature": 0} | USAGE,  # to the end of the answer
        {"messages": QUESTION, "max_tokens": 24, "seed": 3} | USAGE,  # the model's own sampling
        {"messages": QUESTION, "temperature": 0, "max_completion_tokens": 5} | USAGE,
        {"messages": [{"role": "system", "content": "Be brief. \u00e9\u4e2d\U0001f600"}, *QUESTION]}
        | GREEDY
        | USAGE,
        {"prompt": "A token is"} | GREEDY | USAGE,
        {"prompt": "A token is", "temperature": 0} | USAGE,
        {"prompt": [5, 6, 7, 8]} | GREEDY | USAGE,
        {"prompt": "A token is", "stop": ["text", "q"]} | GREEDY | USAGE,
        {"prompt": "A token is", "stop": "text", "include_stop_str_in_output": True}
        | GREEDY
        | USAGE,
        {"prompt": "A", "ignore_eos": True, "min_tokens": 9, "max_tokens": 40, "temperature": 0}
        | USAGE,
        {
            "prompt": "A token is", "max_tokens": 24, "seed": 7, "temperature": 0.9, "top_p": 0.9,
            "top_k": 20, "min_p": 0.01, "frequency_penalty": 0.3, "presence_penalty": 0.2,
            "repetition_penalty": 1.1, "stop_token_ids": [11], "user": "someone", "n": 1,
        } | USAGE,
    ],
)  # fmt: skip
def test_its_streams_are_those_of_the_other(rust: Rust, fields: dict[str, Any]) -> None:
    path = "chat/completions" if "messages" in fields else "completions"
    own = post(rust.endpoint, path, stream=True, **fields)
    other = post(rust.python, path, stream=True, **fields)
    assert (own.status_code, other.status_code) == (200, 200)
    assert (is_from_rust(own), is_from_rust(other)) == (True, False)
    assert answer(own) == answer(other)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": QUESTION} | GREEDY,
        {"messages": QUESTION, "n": 2, "stream": True} | GREEDY,
        {"messages": QUESTION, "logprobs": True, "stream": True} | GREEDY,
        {"messages": QUESTION, "response_format": {"type": "json_object"}, "stream": True} | GREEDY,
    ],
)
def test_other_requests_are_answered_too(rust: Rust, fields: dict[str, Any]) -> None:
    reply = post(rust.endpoint, "chat/completions", **fields)
    assert reply.status_code == 200
    assert not is_from_rust(reply)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -3},
        {"temperature": "078-05-1120"},
        {"prompt": "word " * 2000},
        {"top_k": -7},
    ],
)
def test_its_errors_are_those_of_the_other(rust: Rust, fields: dict[str, Any]) -> None:
    fields = {"prompt": "A", "stream": True} | fields
    own, other = (post(e, "completions", **fields) for e in (rust.endpoint, rust.python))
    assert own.status_code == other.status_code == 400
    assert own.json() == other.json()
    assert "078-05-1120" not in own.text


def test_charges_and_metrics_are_the_tokens_of_both_front_ends(rust: Rust) -> None:
    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
    time.sleep(2)  # metrics are read every second
    before, metrics = counts(rust.endpoint), [metric(rust.endpoint, name) for name in names]
    streamed = answer(
        post(rust.endpoint, "chat/completions", messages=QUESTION, stream=True, **GREEDY, **USAGE)
    )["usage"]
    whole = post(rust.endpoint, "chat/completions", messages=QUESTION, **GREEDY).json()["usage"]
    added = [streamed[0] + whole["prompt_tokens"], streamed[1] + whole["completion_tokens"]]
    assert min(added) > 0
    expected = tuple(old + new for old, new in zip(before, added, strict=True))
    wait_until(lambda: counts(rust.endpoint) == expected)
    wait_until(
        lambda: (
            [metric(rust.endpoint, name) for name in names]
            == [old + new for old, new in zip(metrics, added, strict=True)]
        )
    )


def open_stream(endpoint: Endpoint, client: httpx.Client) -> Any:
    headers = {"authorization": f"Bearer {endpoint.api_key.get_secret_value()}"}
    body = {"model": endpoint.model_id, "prompt": "A token is", "stream": True, "max_tokens": 900}
    return client.stream(
        "POST",
        f"{endpoint.base_url}/completions",
        json=body | {"ignore_eos": True, "temperature": 0},
        headers=headers,
        timeout=60,
    )


def test_a_client_that_disconnects_stops_the_engine_and_pays(rust: Rust) -> None:
    before = counts(rust.endpoint)
    with httpx.Client() as client, open_stream(rust.endpoint, client) as stream:
        lines = stream.iter_lines()
        seen = sum(next(lines).startswith("data:") for _ in range(12))
    wait_until(lambda: metric(rust.endpoint, "vllm:num_requests_running") == 0)
    wait_until(lambda: counts(rust.endpoint) > before)
    prompt, output = (new - old for new, old in zip(counts(rust.endpoint), before, strict=True))
    assert prompt > 0
    assert seen <= output < 900


def test_a_replica_whose_front_end_is_killed_is_replaced(rust: Rust) -> None:
    (process,) = [
        process
        for process in map(psutil.Process, descendants(os.getpid()))
        if process.name() == "vllm-rs"
    ]
    with httpx.Client() as client, open_stream(rust.endpoint, client) as stream:
        lines = stream.iter_lines()
        next(lines)
        process.kill()
        try:
            ends = [line for line in lines if line.startswith("data:")]
        except httpx.TransportError:
            ends = []  # the replica ended before it was read
    assert not ends or json.loads(ends[-1][5:])["error"]["code"] == "replica_ended"

    def is_answered() -> bool:
        try:
            reply = post(rust.endpoint, "completions", prompt="A", stream=True, max_tokens=2)
        except httpx.TransportError:
            return False
        return reply.status_code == 200 and is_from_rust(reply)

    wait_until(is_answered, within_s=180)
