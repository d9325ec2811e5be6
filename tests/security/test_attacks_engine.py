"""Attacks on a real engine behind its gate: it stops, it survives, and logs hold no text."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import httpx
import openai
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from support.client_endpoints import engine_metric, settled_metric
from support.engines import PAUSE_S, paused_engines
from support.shared_service import Deployed, session_logs

import workbench as wb
from serving.cluster.supervisor import descendants
from serving.deploy import status
from serving.spec.tenants import Tenant
from workbench.endpoints.deployed import Endpoint, deploy
from workbench.endpoints.remote import Remote
from workbench.records import ReplicaSample

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
LONG = {"max_tokens": 900, "ignore_eos": True, "stream": True}


def root(endpoint: Endpoint) -> str:
    return endpoint.base_url.removesuffix("/v1")


def bearer(target: Remote) -> dict[str, str]:
    return {"authorization": f"Bearer {target.api_key.get_secret_value()}"}


def ask(target: Remote, **fields: Any) -> httpx.Response:
    body = {"model": target.model_id, "prompt": "Batching is", "max_tokens": 2} | fields
    return httpx.post(
        f"{target.base_url}/completions", json=body, headers=bearer(target), timeout=60
    )


def send(target: Remote, path: str, body: dict[str, Any], *extra: str) -> socket.socket:
    """Send a request over a connection of its own, which its user closes."""
    content = json.dumps({"model": target.model_id} | body).encode()
    lines = [f"{name}: {value}" for name, value in bearer(target).items()]
    lines += ["host: a", "content-type: application/json", f"content-length: {len(content)}"]
    port = int(target.base_url.split("/")[2].rsplit(":", 1)[1])
    route = "/" + target.base_url.split("/", 3)[3] + path
    client = socket.create_connection(("127.0.0.1", port))
    head = f"POST {route} HTTP/1.1\r\n" + "\r\n".join([*lines, *extra]) + "\r\n\r\n"
    client.sendall(head.encode() + content)
    return client


def wait_until(condition: Callable[[], object], what: str, within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def used(endpoint: Endpoint, tenant: str) -> tuple[int, int]:
    """The prompt and output tokens that a tenant was charged, as its gates report them."""
    row: Any = endpoint.usage().to_dict("index").get(tenant, {})
    return row.get("prompt_tokens", 0), row.get("output_tokens", 0)


def replicas(name: str) -> set[str]:
    deployments = status.details()["applications"][name]["deployments"]
    return {r["replica_id"] for d in deployments.values() for r in d["replicas"]}


def memory_mib() -> float:
    """Resident memory in MiB of all engines and replicas of this cluster."""
    total = 0
    for pid in descendants(os.getpid()):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            command = " ".join(process.cmdline())
            if "VLLM::" in command or "DirectReplica" in command or "ServeReplica" in command:
                total += process.memory_info().rss
    return total / 2**20


@pytest.fixture(scope="module")
def tenants(deployed: Deployed) -> Iterator[Endpoint]:
    """The shared endpoint with further tenants, which are removed again at the end."""
    shared = deployed.endpoint
    further = [
        Tenant(name="few", requests_per_minute=4),
        Tenant(name="one", max_concurrent_requests=1),
        Tenant(name="words", tokens_per_minute=300),
        Tenant(name="elsewhere", models=("another-model",)),
        Tenant(name="formats"),
        Tenant(name="leaves"),
    ]
    before = replicas("shared")
    yield deploy(shared.spec, tenants=further, progress=lambda _: None)
    deploy(shared.spec, progress=lambda _: None)
    assert replicas("shared") == before, "a change of tenants replaced a replica"


class TestQuotas:
    def test_tenants_are_added_without_a_new_replica_and_have_quotas(
        self, tenants: Endpoint
    ) -> None:
        few = tenants.as_tenant("few")
        replies = [ask(few) for _ in range(6)]
        codes = [reply.status_code for reply in replies]
        assert codes[:4] == [200] * 4
        assert 429 in codes[4:]
        assert replies[0].headers["x-ratelimit-limit-requests"] == "4"
        assert int(next(r for r in replies if r.status_code == 429).headers["retry-after"]) >= 1
        assert ask(tenants.as_tenant("elsewhere")).status_code == 403
        assert ask(tenants).status_code == 200

    def test_usage_is_the_engines_own_count(self, tenants: Endpoint) -> None:
        words = tenants.as_tenant("words")
        # This uses most of 300 tokens. At 5 a second, 280 are not available again for long.
        whole = ask(words, max_tokens=100, ignore_eos=True).json()["usage"]
        stream = ask(words, max_tokens=150, ignore_eos=True, stream=True)
        assert ask(words, max_tokens=280).status_code == 429
        assert '"usage":{' not in stream.text
        wait_until(lambda: used(tenants, "words")[1] >= 250, "not all was charged")
        usage = tenants.usage(usd_per_million_prompt_tokens=1, usd_per_million_output_tokens=2)
        row = usage.loc["words"]
        assert row["output_tokens"] == whole["completion_tokens"] + 150 == 250
        assert row["prompt_tokens"] == 2 * whole["prompt_tokens"]
        assert row["usd"] == pytest.approx((row["prompt_tokens"] + 500) / 1e6)

    def test_a_client_that_leaves_a_whole_answer_pays_for_what_was_generated(
        self, tenants: Endpoint
    ) -> None:
        leaves = tenants.as_tenant("leaves")
        messages = [{"role": "user", "content": "Count."}]
        body = {"messages": messages, "max_tokens": 900, "ignore_eos": True}
        before = settled_metric("generation_tokens")
        with send(leaves, "/chat/completions", body):
            # It leaves once the engine generates, however long the request took to get there.
            wait_until(lambda: engine_metric("generation_tokens") > before, "nothing generated")
        wait_until(lambda: used(tenants, "leaves")[1], "nothing was charged")
        prompt, output = used(tenants, "leaves")
        generated = settled_metric("generation_tokens") - before
        # The engine may complete a step or two before it learns of the end.
        assert 0 < output <= 900
        assert output == pytest.approx(generated, abs=20)
        assert prompt > 0

    def test_usage_in_every_format_is_the_engines_own_count(self, tenants: Endpoint) -> None:
        formats = tenants.as_tenant("formats")
        messages = [{"role": "user", "content": "Batching is"}]
        bodies: dict[str, dict[str, Any]] = {
            "/v1/responses": {"input": "Batching is", "max_output_tokens": 20},
            "/v1/messages": {"messages": messages, "max_tokens": 20},
            "/v1/chat/completions": {"messages": messages, "max_tokens": 20.0},
        }
        prompt_tokens = output_tokens = 0
        with httpx.Client(base_url=root(tenants), headers=bearer(formats), timeout=60) as client:
            for path, body in bodies.items():
                body |= {"model": formats.model_id, "temperature": 0}
                whole = client.post(path, json=body)
                stream = client.post(path, json=body | {"stream": True})
                assert (whole.status_code, stream.status_code) == (200, 200), whole.text
                # A greedy answer is the same in a stream.
                usage = whole.json()["usage"]
                prompt_tokens += 2 * (usage.get("prompt_tokens") or usage["input_tokens"])
                output_tokens += 2 * (usage.get("completion_tokens") or usage["output_tokens"])
            count = {"model": formats.model_id, "messages": messages}
            counted = client.post("/v1/messages/count_tokens", json=count)
            prompt_tokens += counted.json()["input_tokens"]
        charged = (prompt_tokens, output_tokens)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: used(tenants, "formats") == charged, "another count")
        assert used(tenants, "formats") == charged

    def test_the_openai_client_obeys_retry_after(self, tenants: Endpoint) -> None:
        one = tenants.as_tenant("one")
        codes: list[int] = []
        hooks = {"response": [lambda reply: codes.append(reply.status_code)]}
        http = openai.DefaultHttpxClient(event_hooks=hooks, **one.connection.client_options())
        client = one.client.with_options(max_retries=5, http_client=http)
        # The engine is paused, so that the first of two requests lasts until the others are shed.
        with http, ThreadPoolExecutor(3) as pool, paused_engines():
            both = [pool.submit(ask, one) for _ in range(2)]
            assert next(as_completed(both, timeout=PAUSE_S)).result().status_code == 429
            create = client.completions.create
            retried = pool.submit(create, model=one.model_id, prompt="a", max_tokens=2)
            wait_until(lambda: codes, "the client was not answered", PAUSE_S)
        assert sorted(reply.result().status_code for reply in both) == [200, 429]
        assert retried.result().choices
        assert (codes[0], codes[-1]) == (429, 200)


def running(endpoint: Endpoint, seconds: float) -> list[float]:
    """Sample the engine's own count of running requests for some seconds."""
    rows: list[Any] = []
    began = time.monotonic()
    with wb.Telemetry(endpoint, lambda: time.monotonic() - began, rows.append, 0.5):
        time.sleep(seconds)
    replica_rows = [row for row in rows if isinstance(row, ReplicaSample)]
    return [row.running_requests for row in replica_rows if row.running_requests is not None]


def test_the_engine_stops_when_clients_disconnect(endpoint: Endpoint) -> None:
    # Ray Serve lets a client disable disconnects; that must not keep the engine busy.
    disabled = "x-request-disconnect-disabled: ?1"
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(send(endpoint, "/completions", {"prompt": "a"} | LONG, disabled))
            for _ in range(4)
        ]
        for client in clients:
            client.recv(200)
    disconnected = time.monotonic()
    while any(running(endpoint, 1.5)[-1:]):
        assert time.monotonic() - disconnected < 60, "the engine still generates without clients"
    assert ask(endpoint).status_code == 200


def test_a_preflight_reaches_the_gate_without_a_key(endpoint: Endpoint) -> None:
    fields = {"origin": "https://a.example.org", "access-control-request-method": "POST"}
    reply = httpx.options(f"{endpoint.base_url}/chat/completions", headers=fields, timeout=60)
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "origin_not_allowed")


ARGUMENTS: list[dict[str, Any]] = [
    {"min_tokens": 2, "stop_token_ids": [10**9]},
    {"min_tokens": 2, "stop_token_ids": [-5]},
    {"allowed_token_ids": [10**9]},
    {"allowed_token_ids": [-7]},
    {"allowed_token_ids": []},
    {"logit_bias": {"99999999": 5}},
    {"logit_bias": {"-3": 5}},
    {"logit_bias": {"a": 5}},
    {"top_k": 2**62},
    {"top_k": -2},
    {"seed": 2**63 - 1},
    {"seed": -(2**63) + 1},
    {"truncate_prompt_tokens": -1},
    {"truncate_prompt_tokens": 1},
    {"temperature": 1e308},
    {"temperature": -1},
    {"top_p": 0},
    {"repetition_penalty": 1e-300},
    {"frequency_penalty": 1e300},
    {"min_p": 2},
    {"logprobs": -1},
    {"logprobs": 100},
    {"n": 0},
    {"n": -1},
    {"thinking_token_budget": 5},
    {"structured_outputs": {"regex": "(a+)+$"}},
    {"structured_outputs": {"grammar": "root ::= root"}},
    {"structured_outputs": {"json": "{"}},
    {"structured_outputs": {}},
    {"response_format": {"type": "structural_tag"}},
    {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"$ref": "#"}},
        }
    },
    {"bad_words": [""]},
    {"bad_words": ["a" * 900]},
    {"stop": [""]},
    {"prompt": []},
    {"prompt": [[]]},
    {"prompt": ""},
    {"prompt": [10**9]},
    {"prompt": [-1]},
    {"prompt": None},
    {"suffix": "x"},
    {"echo": True, "max_tokens": 0},
    {"echo": True, "logprobs": 3},
    {"max_tokens": 0},
    {"max_tokens": -3},
    {"min_tokens": 100},
    {"min_tokens": -1},
    {"repetition_detection": {"a": 1}},
    {"repetition_detection": {"max_pattern_size": 10**9, "min_pattern_size": -1, "min_count": -1}},
    {"cache_salt": ""},
    {"length_penalty": -1e300},
    {"stream": True, "n": 0},
    {"stream": True, "prompt": [10**9]},
    {"stream_options": {"include_usage": True}},
    {"model": "\u0000"},
    {"model": "../../etc/passwd"},
]
OTHER_ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/responses", {}),
    ("/v1/responses", {"input": []}),
    ("/v1/responses", {"input": [7, None, {}]}),
    ("/v1/responses", {"input": [{"type": "item_reference", "id": "x"}]}),
    ("/v1/responses", {"input": [{"type": "reasoning", "summary": 7}]}),
    ("/v1/responses", {"input": "CANARY", "max_output_tokens": -1}),
    ("/v1/responses", {"input": "CANARY", "include": ["message.output_text.logprobs"]}),
    ("/v1/responses", {"input": "CANARY", "include": ["nothing"]}),
    ("/v1/responses", {"input": "CANARY", "tools": [{"type": "web_search"}]}),
    ("/v1/responses", {"input": "CANARY", "tools": [{"type": "mcp", "server_label": "x"}]}),
    ("/v1/responses", {"input": "CANARY", "text": {"format": {"type": "json_schema"}}}),
    ("/v1/responses", {"input": "CANARY", "truncation": "auto", "max_output_tokens": 2}),
    ("/v1/responses", {"input": "CANARY", "reasoning": {"effort": "high"}}),
    ("/v1/responses", {"input": "CANARY", "logit_bias": {"99999999": 5}}),
    ("/v1/responses", {"input": "CANARY", "structured_outputs": {"regex": "(a+)+$"}}),
    ("/v1/messages", {}),
    ("/v1/messages", {"messages": [], "max_tokens": 2}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "CANARY"}], "max_tokens": 0}),
    ("/v1/messages", {"messages": [{"role": "user", "content": [{}]}], "max_tokens": 2}),
    ("/v1/messages", {"messages": [{"role": "tool", "content": "CANARY"}], "max_tokens": 2}),
    (
        "/v1/messages",
        {
            "messages": [{"role": "user", "content": "CANARY"}],
            "max_tokens": 2,
            "tools": [{"name": "f", "input_schema": {}}],
            "tool_choice": {"type": "tool", "name": "g"},
        },
    ),
    ("/v1/messages/count_tokens", {"messages": "CANARY"}),
    ("/v1/embeddings", {"input": ["CANARY"]}),
    ("/v1/embeddings", {}),
    ("/rerank", {"query": "CANARY", "documents": ["a"]}),
    ("/score", {"queries": "CANARY", "documents": ["a"]}),
]
"""Bodies for the routes of other formats, and of models of another kind."""
HEADERS = [
    {"serve_multiplexed_model_id": "evil"},
    {"serve-multiplexed-model-id": "evil"},
    {"x-request-timeout-seconds": "abc"},
    {"x-request-timeout-seconds": "-1"},
    {"x-data-parallel-rank": "7"},
    {"x-session-id": "z" * 100},
    {"traceparent": "junk"},
    {"content-type": "text/plain"},
    {"content-type": "multipart/form-data; boundary=a"},
]


def test_no_argument_or_header_breaks_the_engine_or_reaches_the_logs(endpoint: Endpoint) -> None:
    canary = f"zebra{secrets.token_hex(8)}"
    memory_before, replicas_before = memory_mib(), replicas("shared")
    broken = [
        (fields, reply.status_code, reply.text[:200])
        for fields in ARGUMENTS
        if (reply := ask(endpoint, **({"prompt": canary, "user": canary} | fields))).status_code
        >= 500
    ]
    for path, fields in OTHER_ROUTES:
        text = json.dumps({"model": endpoint.model_id} | fields).replace("CANARY", canary)
        json_headers = bearer(endpoint) | {"content-type": "application/json"}
        url = f"{root(endpoint)}{path}"
        reply = httpx.post(url, content=text, headers=json_headers, timeout=60)
        if reply.status_code >= 500:
            broken.append((fields | {"path": path}, reply.status_code, reply.text[:200]))
    body = json.dumps({"model": endpoint.model_id, "prompt": canary, "max_tokens": 1})
    for extra in HEADERS:
        sent = [(n.encode(), v.encode("latin-1")) for n, v in (bearer(endpoint) | extra).items()]
        sent += [] if "content-type" in extra else [(b"content-type", b"application/json")]
        reply = httpx.post(
            f"{endpoint.base_url}/completions", content=body, headers=sent, timeout=60
        )
        if reply.status_code >= 500:
            broken.append((extra, reply.status_code, reply.text[:200]))
    for path, key in (("/v1/models", "api_key"), ("/v1/completions", canary)):
        httpx.get(f"{root(endpoint)}{path}", params={key: canary}, timeout=60)
    assert broken == []
    # Ray Serve reads this header before the gate, and answers 503 if it is not UTF-8.
    garbled = {b"x-request-id": b"a\xff", b"content-type": b"application/json"}
    garbled |= {name.encode(): value.encode() for name, value in bearer(endpoint).items()}
    httpx.post(f"{endpoint.base_url}/completions", content=body, headers=garbled, timeout=60)
    assert ask(endpoint).status_code == 200
    assert replicas("shared") == replicas_before
    assert memory_mib() < memory_before + 200
    time.sleep(1)
    logs = str(session_logs())
    for secret in (canary, endpoint.api_key.get_secret_value()):
        grep = subprocess.run(["grep", "-rlaF", secret, logs], capture_output=True, text=True)
        assert grep.stdout == ""


@pytest.mark.slow
def test_no_request_that_openapi_allows_is_a_5xx(endpoint: Endpoint) -> None:
    import schemathesis

    document = httpx.get(
        f"{root(endpoint)}/openapi.json", headers=bearer(endpoint), timeout=60
    ).json()
    schema = schemathesis.openapi.from_dict(document)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {"/v1/chat/completions", "/v1/completions"} <= {
        operation.path for operation in operations
    }
    for operation in operations:

        @settings(max_examples=15, database=None, suppress_health_check=[*HealthCheck])
        @given(case=operation.as_strategy())
        def never_breaks(case: Any) -> None:
            reply = case.call(base_url=root(endpoint), headers=bearer(endpoint), timeout=60)
            assert reply.status_code < 500, (case.method, case.path, reply.text[:300])

        never_breaks()
    assert ask(endpoint).status_code == 200
