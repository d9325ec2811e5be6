"""The header of a session over real sockets. Ground truth: what reaches the application."""

from __future__ import annotations

import httpx
import pytest
from support.gate_clients import replace_config
from support.gate_server import AUTHORIZED, ServedGate

from serving.gateway.http_routes import sanitized_scope


def post(served: ServedGate, **headers: str) -> httpx.Response:
    with served.http(AUTHORIZED | headers) as client:
        return client.post("/v1/completions", json={"model": "m", "prompt": "a"})


@pytest.mark.parametrize("name", ["x-session-id", "X-Session-ID"])
def test_without_a_session_router_the_header_is_an_error(served: ServedGate, name: str) -> None:
    reply = post(served, **{name: "abc"})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert (error["code"], error["param"]) == ("session_routing_disabled", "x-session-id")
    assert "routing='session'" in error["message"]
    assert served.app.log == []
    assert post(served).status_code == 200


def test_the_models_are_listed_in_any_case(served: ServedGate) -> None:
    with served.http(AUTHORIZED | {"x-session-id": "abc"}) as client:
        assert client.get("/v1/models").status_code == 200


def test_with_a_session_router_it_passes(served: ServedGate) -> None:
    served.config = replace_config(sessions=True)
    assert post(served, **{"x-session-id": "abc"}).status_code == 200
    assert len(served.app.log) == 1


def test_the_application_behind_the_gate_sees_it() -> None:
    headers = [(b"x-session-id", b"abc"), (b"x-other", b"1")]
    assert sanitized_scope({"headers": headers}, b"")["headers"] == headers[:1]
