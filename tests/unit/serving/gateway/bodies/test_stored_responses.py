"""Stored responses over real sockets: only where they are correct, else an error that says why."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.gate_clients import replace_config
from support.gate_server import AUTHORIZED, ServedGate

STORED = replace_config(stores_responses=True)
ROUTES = [("GET", "/v1/responses/resp_1"), ("POST", "/v1/responses/resp_1/cancel")]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_routes_say_why_nothing_is_stored(served: ServedGate, method: str, path: str) -> None:
    with served.http(AUTHORIZED) as client:
        reply = client.request(method, path)
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (404, "responses_not_stored")
        assert "VLLM_ENABLE_RESPONSES_API_STORE" in error["message"]
        assert served.app.log == []
        served.config = STORED
        assert client.request(method, path).status_code == 200
        other = {"GET": "DELETE", "POST": "GET"}[method]
        assert client.request(other, path).status_code == 405
    with served.http() as anonymous:
        assert anonymous.request(method, path).status_code == 401
    assert [request.path for request in served.app.log] == [path]


@pytest.mark.parametrize(
    "fields", [{"store": True}, {"background": True}, {"previous_response_id": "resp_1"}]
)
def test_fields_say_why_nothing_is_stored(served: ServedGate, fields: dict[str, Any]) -> None:
    with served.http(AUTHORIZED) as client:
        reply = client.post("/v1/responses", json=fields)
        error = reply.json()["error"]
        assert reply.status_code == 400
        assert (error["code"], error["param"]) == ("responses_not_stored", *fields)
        assert "VLLM_ENABLE_RESPONSES_API_STORE" in error["message"]
        served.config = STORED
        assert client.post("/v1/responses", json=fields).status_code == 200
    assert [json.loads(request.body) for request in served.app.log] == [fields | {"model": "m"}]


def test_without_a_store_the_engine_is_told_not_to_store(served: ServedGate) -> None:
    harmless = {"input": "a", "store": False, "background": False, "previous_response_id": None}
    with served.http(AUTHORIZED) as client:
        for fields in (harmless, {"input": "a"}):
            assert client.post("/v1/responses", json=fields).status_code == 200
    bodies = [json.loads(request.body) for request in served.app.log]
    assert bodies == [{"input": "a", "model": "m", "store": False}] * 2


def test_chat_may_say_store_as_openais_clients_do(served: ServedGate) -> None:
    with served.http(AUTHORIZED) as client:
        fields = {"messages": [], "store": True}
        assert client.post("/v1/chat/completions", json=fields).status_code == 200
