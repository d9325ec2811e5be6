"""The endpoint as users see it: a real engine, real sockets and OpenAI's client."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from support.engines import PAUSE_S, paused_engines
from support.paths import ROOT
from support.processes import names
from support.shared_service import MAX_ONGOING, MAX_QUEUED, Deployed, session_logs

from serving.cluster.ports import FIRST, LAST, NAMED, SIZE
from serving.cluster.supervisor import descendants
from serving.deploy import status
from serving.errors import (
    ClusterError,
    DeployError,
    EndpointGoneError,
    ResourcesError,
)
from serving.models.embedded import tiny_model_path
from serving.spec.model import ModelSpec
from serving.spec.scaling import ScalingSpec
from serving.spec.service import EndpointSpec, ServiceSpec
from workbench.endpoints.deployed import Endpoint, deploy

# The first test waits for two deployments or more.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
QUESTION: Any = [{"role": "user", "content": "What is continuous batching?"}]


def root(endpoint: Endpoint) -> str:
    return endpoint.base_url.removesuffix("/v1")


def headers(endpoint: Endpoint) -> dict[str, str]:
    return {"authorization": f"Bearer {endpoint.api_key.get_secret_value()}"}


def replica_ids(name: str) -> set[str]:
    deployments = status.details()["applications"][name]["deployments"]
    return {r["replica_id"] for d in deployments.values() for r in d["replicas"]}


def changed(spec: EndpointSpec, **scaling: Any) -> ServiceSpec:
    fields = spec.model_dump()
    fields["model"]["scaling"] |= scaling
    return ServiceSpec(**fields)


def test_models_are_listed_and_retrieved(endpoint: Endpoint) -> None:
    assert [m.id for m in endpoint.client.models.list()] == ["tiny-llama-glossary"]
    assert endpoint.client.models.retrieve(endpoint.model_id).id == endpoint.model_id


def test_chat_answers_from_the_glossary(endpoint: Endpoint) -> None:
    answer = endpoint.client.chat.completions.create(
        model=endpoint.model_id, messages=QUESTION, temperature=0, max_tokens=120
    )
    text = answer.choices[0].message.content
    glossary = ROOT / "tools" / "tiny_model" / "glossary.jsonl"
    entries = [json.loads(line) for line in glossary.read_text().splitlines()]
    entry = next(e for e in entries if e["term"].lower() == "continuous batching")
    assert text
    assert text.strip()[:60] in entry["definition"]
    assert answer.choices[0].finish_reason == "stop"


def test_streamed_and_whole_answers_agree_and_usage_is_the_tokenizers(endpoint: Endpoint) -> None:
    from transformers import AutoTokenizer

    common: dict[str, Any] = {"model": endpoint.model_id, "messages": QUESTION}
    common |= {"temperature": 0, "max_tokens": 24}
    whole = endpoint.client.chat.completions.create(**common)
    chunks = list(
        endpoint.client.chat.completions.create(
            **common, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert sum(bool(c.choices and c.choices[0].delta.content) for c in chunks) > 5
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path())
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    expected = len(tokenizer(prompt, add_special_tokens=False).input_ids)
    assert whole.usage
    assert whole.usage.prompt_tokens == expected
    assert whole.usage.completion_tokens == 24 == chunks[-1].usage.completion_tokens


def test_completions_and_the_async_client(endpoint: Endpoint) -> None:
    whole = endpoint.client.completions.create(
        model=endpoint.model_id, prompt="Continuous batching is", temperature=0, max_tokens=8
    )
    assert whole.choices[0].text

    async def ask() -> str:
        async with endpoint.async_client.with_options() as client:
            reply = await client.completions.create(
                model=endpoint.model_id,
                prompt="Continuous batching is",
                temperature=0,
                max_tokens=8,
            )
            return str(reply.choices[0].text)

    del endpoint.__dict__["client"]
    assert asyncio.run(ask()) == asyncio.run(ask()) == whole.choices[0].text


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model": "no-such-model"}, openai.NotFoundError),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, openai.BadRequestError),
        ({"messages": "not a list"}, openai.BadRequestError),
        ({"temperature": "hot"}, openai.BadRequestError),
    ],
)
def test_invalid_requests_raise_openais_own_errors(
    endpoint: Endpoint, change: dict[str, Any], error: type[openai.APIStatusError]
) -> None:
    request: dict[str, Any] = {"model": endpoint.model_id, "messages": QUESTION, "max_tokens": 4}
    with pytest.raises(error) as caught:
        endpoint.client.chat.completions.create(**(request | change))
    body: Any = caught.value.body
    assert body["message"]


@pytest.mark.parametrize("body", [b"{bad", b"", b"[1]", b"\xff\xfe"])
def test_a_malformed_body_is_a_400_in_openais_shape(endpoint: Endpoint, body: bytes) -> None:
    fields = headers(endpoint) | {"content-type": "application/json"}
    reply = httpx.post(
        f"{endpoint.base_url}/chat/completions", content=body, headers=fields, timeout=60
    )
    assert reply.status_code == 400
    assert reply.json()["error"]["message"]


@pytest.mark.parametrize("key", ["", "sk-wrong-wrong-wrong-wrong"])
def test_every_route_but_health_needs_the_key(endpoint: Endpoint, key: str) -> None:
    wrong = {"authorization": f"Bearer {key}"} if key else {}
    gets = ["/v1/models", "/metrics", "/load", "/version", "/docs", "/openapi.json", "/nothing"]
    posts = ["/v1/chat/completions", "/v1/completions", "/invocations", "/tokenize", "/detokenize"]
    with httpx.Client(base_url=root(endpoint), headers=wrong, timeout=60) as client:
        replies = [client.get(path) for path in gets] + [client.post(p, json={}) for p in posts]
        assert {r.status_code for r in replies} == {401}
        assert {r.json()["error"]["code"] for r in replies} == {"invalid_api_key"}
        assert client.get("/health").status_code == 200
    assert (
        httpx.get(f"{root(endpoint)}/version", headers=headers(endpoint), timeout=60).status_code
        == 200
    )


def test_a_wrong_key_raises_authentication_error(endpoint: Endpoint) -> None:
    client = openai.OpenAI(base_url=endpoint.base_url, api_key="sk-wrong-wrong-wrong-wrong")
    with pytest.raises(openai.AuthenticationError):
        client.models.list()


def replies_while_full(endpoint: Endpoint, requests: int, shed: int) -> list[httpx.Response]:
    """Send requests at once; none is answered before so many of the others have been shed."""
    body = {"model": endpoint.model_id, "prompt": "a", "max_tokens": 100, "ignore_eos": True}
    url, limits = f"{endpoint.base_url}/completions", httpx.Limits(max_connections=requests)
    with (
        httpx.Client(headers=headers(endpoint), timeout=240, limits=limits) as client,
        ThreadPoolExecutor(requests) as pool,
        paused_engines(),
    ):
        posts = [pool.submit(client.post, url, json=body) for _ in range(requests)]
        _wait_until(lambda: sum(post.done() for post in posts) >= shed, PAUSE_S)
    return [post.result() for post in posts]


def test_requests_beyond_the_limits_are_shed_with_retry_after(endpoint: Endpoint) -> None:
    capacity = MAX_ONGOING + MAX_QUEUED
    replies = replies_while_full(endpoint, 2 * capacity, shed=capacity)
    counts = Counter(r.status_code for r in replies)
    assert counts == {200: capacity, 429: capacity}
    shed = next(r for r in replies if r.status_code == 429)
    assert shed.headers["retry-after"] == "1"
    assert shed.json()["error"]["type"] == "rate_limit_error"


def test_a_flood_of_wrong_keys_fails_no_valid_request(endpoint: Endpoint) -> None:
    url = f"{endpoint.base_url}/completions"
    good = {"model": endpoint.model_id, "prompt": "a", "max_tokens": 4}
    ended = threading.Event()

    def flood(_: int) -> set[int]:
        statuses: set[int] = set()
        with httpx.Client(headers={"authorization": "Bearer wrong"}, timeout=60) as client:
            while not statuses or not ended.is_set():
                statuses.add(client.post(url, json=good).status_code)
        return statuses

    with ThreadPoolExecutor(24) as pool:
        floods = [pool.submit(flood, i) for i in range(24)]
        answers: list[int] = []
        deadline = time.monotonic() + 4
        try:
            while len(answers) < 5 or time.monotonic() < deadline:
                reply = httpx.post(url, json=good, headers=headers(endpoint), timeout=60)
                answers.append(reply.status_code)
        finally:
            ended.set()
    assert set(answers) == {200}
    assert set().union(*(f.result() for f in floods)) == {401}


def test_deploying_the_same_spec_again_changes_nothing(deployed: Deployed) -> None:
    before = replica_ids("shared")
    lines: list[str] = []
    again = deploy(deployed.endpoint.spec, progress=lines.append)
    assert replica_ids("shared") == before
    assert any("already running" in line for line in lines)
    assert again.api_key == deployed.endpoint.api_key
    assert again.client.models.list().data


def test_limits_change_in_place(endpoint: Endpoint) -> None:
    before = replica_ids("shared")
    deploy(changed(endpoint.spec, max_ongoing_requests=4, max_queued_requests=0))
    replies = replies_while_full(endpoint, 12, shed=8)
    assert Counter(reply.status_code for reply in replies) == {200: 4, 429: 8}
    assert replica_ids("shared") == before
    deploy(endpoint.spec)
    assert replica_ids("shared") == before


def test_a_new_key_replaces_the_old_one_in_place(endpoint: Endpoint) -> None:
    before, old = replica_ids("shared"), endpoint.api_key.get_secret_value()
    other = deploy(endpoint.spec, api_key="sk-another-key-of-enough-length")
    assert other.client.models.list().data
    assert (
        httpx.get(f"{endpoint.base_url}/models", headers=headers(endpoint), timeout=60).status_code
        == 401
    )
    deploy(endpoint.spec, api_key=old)
    assert endpoint.client.models.list().data
    assert replica_ids("shared") == before


def test_status_counts_what_runs(endpoint: Endpoint) -> None:
    status = endpoint.status()
    assert status.state == "running"
    model = status.deployments["tiny-llama-glossary"]
    assert (model.target, model.running, model.starting, model.stopping) == (1, 1, 0, 0)
    # Independently, by the engine processes below this one.
    commands = names(descendants(os.getpid())).values()
    assert sum(command.startswith("VLLM::EngineCor") for command in commands) >= 1


def test_progress_names_what_is_waited_for(deployed: Deployed) -> None:
    text = "\n".join(deployed.progress)
    assert "starting Ray" in text
    assert "tiny-llama-glossary: 1 starting" in text
    assert deployed.endpoint.base_url in deployed.progress[-1]


def test_no_log_process_or_record_contains_a_key_or_a_prompt(endpoint: Endpoint) -> None:
    marker = f"zebra{secrets.token_hex(8)}"
    chat: Any = [{"role": "user", "content": marker}]
    endpoint.client.chat.completions.create(
        model=endpoint.model_id, messages=chat, max_tokens=4, user=marker
    )
    for body in (b"{bad " + marker.encode(), json.dumps({"model": marker, "prompt": marker})):
        httpx.post(
            f"{endpoint.base_url}/completions", content=body, headers=headers(endpoint), timeout=60
        )
    time.sleep(1)
    key = endpoint.api_key.get_secret_value()
    logs = session_logs()
    assert any(logs.rglob("worker-*.out"))
    for secret in (marker, key):
        search = subprocess.run(
            ["grep", "-rlaF", secret, str(logs)], capture_output=True, text=True
        )
        assert search.stdout == ""
    commands = [_content(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not any(key.encode() in command for command in commands)
    assert key not in json.dumps(status.details(), default=str)
    assert key not in repr(endpoint) + str(vars(endpoint)["api_key"])


def _content(path: Path) -> bytes:
    """The content of a process's file; nothing if the process has ended."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_the_endpoint_and_the_replicas_listen_only_on_loopback(endpoint: Endpoint) -> None:
    port = int(root(endpoint).rsplit(":", 1)[1])
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening += [line.split() for line in Path("/proc/net/tcp6").read_text().splitlines()[1:]]
    ports: dict[int, set[str]] = {}
    for fields in listening:
        if fields[3] == "0A":  # TCP_LISTEN
            address, _, digits = fields[1].partition(":")
            ports.setdefault(int(digits, 16), set()).add(address)
    # SECURITY.md names four ports of a cluster's block that always listen on all interfaces.
    offsets = {p: (p - FIRST) % SIZE for p in ports if FIRST <= p < LAST}
    assert {offset for offset in offsets.values() if offset >= NAMED}, "no port of a replica"
    for number in {port, *(p for p, offset in offsets.items() if offset not in (2, 3, 4, 5))}:
        assert ports[number] == {"0100007F"}


def test_a_model_that_cannot_load_fails_the_deployment_with_the_engines_errors(
    endpoint: Endpoint, mismatched_model: Path
) -> None:
    model = ModelSpec(source=str(mismatched_model), id="mismatched", max_model_len=256)
    spec = ServiceSpec(name="broken", route_prefix="/broken", port=0, model=model)
    with pytest.raises(DeployError, match="Error: ") as caught:
        deploy(spec)
    assert "broken" in str(caught.value)
    assert "mismatched" in str(caught.value)
    assert "site-packages" not in str(caught.value)
    assert "broken" not in status.details()["applications"]
    assert endpoint.client.models.list().data


class Probe:
    """Asks a service for a completion again and again, in a thread."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._ended = threading.Event()
        self.statuses: list[int] = []

    def __enter__(self) -> Probe:
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _ask(self) -> None:
        body = {"model": self._endpoint.model_id, "prompt": "a", "max_tokens": 2}
        url, fields = f"{self._endpoint.base_url}/completions", headers(self._endpoint)
        while not self._ended.wait(0.2):
            reply = httpx.post(url, json=body, headers=fields, timeout=60)
            self.statuses.append(reply.status_code)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_service_answers_while_it_is_replaced_and_after_a_replacement_that_fails(
    endpoint: Endpoint, mismatched_model: Path
) -> None:
    def spec(**model: Any) -> ServiceSpec:
        fields = {"source": "nano", "id": "small", "max_model_len": 256} | model
        return ServiceSpec(
            name="changed", route_prefix="/changed", port=0, model=ModelSpec(**fields)
        )

    with deploy(spec()) as changed:
        before = replica_ids("changed")
        with Probe(changed) as probe, pytest.raises(DeployError, match="is restored and answers"):
            deploy(spec(source=str(mismatched_model)))
        assert set(probe.statuses) == {200}
        assert len(probe.statuses) > 5
        assert replica_ids("changed") & before  # the engine's; it was never stopped
        with Probe(changed) as probe:
            deploy(spec(max_model_len=512))
        assert set(probe.statuses) == {200}
        # Another id is another deployment, so Serve stops the old one first.
        with pytest.raises(DeployError, match=r"\(small\) is restored and answers"):
            deploy(spec(source=str(mismatched_model), id="renamed"))
        reply = changed.client.completions.create(model="small", prompt="a", max_tokens=2)
        assert reply.usage
        assert reply.usage.completion_tokens == 2
    assert endpoint.client.models.list().data


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (ModelSpec(accelerator="gpu"), "num_gpus"),
        (ModelSpec(num_cpus=10_000), "num_cpus"),
        (ModelSpec(memory_gib=100_000), "memory_gib"),
    ],
)
def test_a_model_that_never_fits_is_rejected(
    endpoint: Endpoint, model: ModelSpec, field: str
) -> None:
    spec = ServiceSpec(name="huge", route_prefix="/huge", port=0, model=model)
    with pytest.raises(ResourcesError, match=field):
        deploy(spec)
    assert "huge" not in status.details()["applications"]


def test_another_port_on_a_running_serve_is_rejected(endpoint: Endpoint) -> None:
    spec = ServiceSpec(name="moved", route_prefix="/moved", port=1234)
    with pytest.raises(ClusterError, match="port = 1234"):
        deploy(spec)


def test_a_model_at_zero_replicas_starts_only_for_a_valid_request(endpoint: Endpoint) -> None:
    scaling = ScalingSpec(
        min_replicas=0,
        max_ongoing_requests=4,
        target_ongoing_requests=2,
        downscale_delay_s=2,
        downscale_to_zero_delay_s=10,  # It still runs when its status is read.
        look_back_period_s=2,
        metrics_interval_s=1,
    )
    model = ModelSpec(id="sleeper", max_model_len=512, scaling=scaling)
    spec = ServiceSpec(name="sleeper", route_prefix="/sleeper", port=0, model=model)
    with deploy(spec) as sleeper:
        assert sleeper.status().deployments["sleeper"].target == 0
        chat = f"{sleeper.base_url}/chat/completions"
        body = {"model": "sleeper", "messages": QUESTION, "max_tokens": 8}
        for _ in range(20):
            assert httpx.post(chat, json=body, timeout=60).status_code == 401
        assert httpx.get(f"{sleeper.base_url}/models", timeout=60).status_code == 401
        assert sleeper.client.models.list().data[0].id == "sleeper"
        assert httpx.get(f"{root(sleeper)}/health", timeout=60).status_code == 200
        _check_rejections_before_the_model_starts(sleeper)
        assert sleeper.status().deployments["sleeper"].target == 0
        client = sleeper.client.with_options(timeout=300, max_retries=0)
        reply = client.chat.completions.create(model="sleeper", messages=QUESTION, max_tokens=8)
        assert reply.usage
        assert reply.usage.completion_tokens == 8
        assert sleeper.status().deployments["sleeper"].running == 1
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="sleeper", prompt="word " * 3000)
        chunks = client.completions.create(model="sleeper", prompt="a", max_tokens=8, stream=True)
        assert "".join(chunk.choices[0].text for chunk in chunks)
        _wait_until(lambda: sleeper.status().deployments["sleeper"].target == 0, 120)
    with pytest.raises(EndpointGoneError):
        sleeper.status()
    assert endpoint.client.models.list().data


def _check_rejections_before_the_model_starts(sleeper: Endpoint) -> None:
    client = sleeper.client.with_options(max_retries=0, timeout=60)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="another", prompt="a")
    fields = headers(sleeper) | {"content-type": "application/json"}
    for body in (b"{bad", b'{"model": "sleeper"}'):
        chat = f"{sleeper.base_url}/chat/completions"
        # The ingress may still import vLLM's classes, by which it judges the second body.
        reply = httpx.post(chat, content=body, headers=fields, timeout=60)
        assert reply.status_code == 400
        assert reply.json()["error"]["message"]


def _wait_until(condition: Any, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.5)


@pytest.mark.slow
def test_tensor_parallelism_gives_the_same_answer_on_a_cpu(endpoint: Endpoint) -> None:
    model = ModelSpec(id="split", max_model_len=256, tensor_parallel_size=2)
    spec = ServiceSpec(name="split", route_prefix="/split", port=0, model=model)
    with deploy(spec) as split:
        common: dict[str, Any] = {"messages": QUESTION, "temperature": 0, "max_tokens": 16}
        answers = [
            e.client.chat.completions.create(model=e.model_id, **common).choices[0].message.content
            for e in (split, endpoint)
        ]
        assert answers[0] == answers[1]
