"""Requests as a browser sends them for a page of another origin (Fetch standard, CORS protocol)."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from support.gate_clients import replace_config
from support.gate_server import AUTHORIZED, CONFIG, ServedGate

PAGE, OTHER = "https://app.example.org", "https://evil.example.org"
ALLOWED = replace_config(cors_origins=(PAGE,))
HEADERS = "authorization,content-type,x-api-key,x-stainless-lang,x-stainless-retry-count"


def preflight(client: httpx.Client, path: str, origin: str = PAGE, **more: str) -> httpx.Response:
    fields = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": HEADERS,
    }
    return client.options(path, headers=fields | more)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/health"])
def test_a_preflight_of_an_allowed_origin_needs_no_key(served: ServedGate, path: str) -> None:
    served.config = ALLOWED
    with served.http() as client:
        reply = preflight(client, path)
    assert (reply.status_code, reply.content) == (204, b"")
    assert reply.headers["access-control-allow-origin"] == PAGE
    assert {"GET", "POST"} <= set(reply.headers["access-control-allow-methods"].split(", "))
    allowed = {name.strip() for name in reply.headers["access-control-allow-headers"].split(",")}
    assert allowed >= set(HEADERS.split(","))
    assert int(reply.headers["access-control-max-age"]) > 0
    assert "origin" in reply.headers["vary"].lower()
    assert "access-control-allow-credentials" not in reply.headers
    assert served.app.log == []


@pytest.mark.parametrize("origins", [(), (PAGE,), (PAGE + ":8443", "http://app.example.org")])
def test_a_preflight_of_another_origin_says_what_to_set(
    served: ServedGate, origins: tuple[str, ...]
) -> None:
    served.config = replace_config(cors_origins=origins)
    with served.http() as client:
        reply = preflight(client, "/v1/chat/completions", OTHER)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (403, "origin_not_allowed")
    assert "cors_origins" in error["message"]
    assert "access-control-allow-origin" not in reply.headers
    assert served.app.log == []


def test_a_preflight_for_another_method_is_403(served: ServedGate) -> None:
    served.config = ALLOWED
    with served.http() as client:
        fields = {"access-control-request-method": "DELETE"}
        assert preflight(client, "/v1/models", **fields).status_code == 403


@pytest.mark.parametrize(
    "missing", [{"origin": ""}, {"access-control-request-method": ""}], ids=str
)
def test_options_that_is_no_preflight_needs_a_key(
    served: ServedGate, missing: dict[str, str]
) -> None:
    served.config = ALLOWED
    names = {"origin": PAGE, "access-control-request-method": "POST"}.items()
    fields = {name: value for name, value in names if name not in missing}
    with served.http() as client:
        assert client.options("/v1/models", headers=fields).status_code == 401


def answers(client: httpx.Client, **headers: str) -> list[httpx.Response]:
    """A completion, the list of models, health, and errors of the gate."""
    anonymous = {"authorization": "", **headers}
    return [
        client.post("/v1/completions", json={"prompt": "a", "unknown": 1}, headers=headers),
        client.get("/v1/models", headers=headers),
        client.get("/health", headers=headers),
        client.post("/v1/completions", json={"priority": 7}, headers=headers),
        client.post("/v1/completions", json={"model": "x"}, headers=headers),
        client.get("/nothing", headers=headers),
        client.get("/v1/models", headers=anonymous),
    ]


def test_every_answer_to_an_allowed_origin_can_be_read(served: ServedGate) -> None:
    served.config = ALLOWED
    with served.http(AUTHORIZED) as client:
        replies = answers(client, origin=PAGE)
    assert [reply.status_code for reply in replies] == [200, 200, 200, 400, 404, 404, 401]
    for reply in replies:
        assert reply.headers["access-control-allow-origin"] == PAGE
        assert "Origin" in reply.headers["vary"]
        exposed = set(reply.headers["access-control-expose-headers"].split(", "))
        assert exposed >= {
            "x-request-id",
            "retry-after",
            "server-timing",
            "x-ignored-fields",
            "x-routed-model",
            "x-ratelimit-remaining-tokens",
        }


@pytest.mark.parametrize(
    ("config", "headers"),
    [(CONFIG, {"origin": PAGE}), (ALLOWED, {"origin": OTHER}), (ALLOWED, {})],
)
def test_other_answers_cannot(served: ServedGate, config: Any, headers: dict[str, str]) -> None:
    served.config = config
    with served.http(AUTHORIZED) as client:
        replies = answers(client, **headers)
    assert [reply.status_code for reply in replies] == [200, 200, 200, 400, 404, 404, 401]
    assert not any("access-control-allow-origin" in reply.headers for reply in replies)


def test_a_star_allows_any_page_and_still_needs_a_key(served: ServedGate) -> None:
    served.config = replace_config(cors_origins=("*",))
    with served.http() as client:
        reply = preflight(client, "/v1/models", OTHER)
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (204, "*")
        assert client.get("/v1/models", headers={"origin": OTHER}).status_code == 401


def test_changed_origins_reach_a_running_gate(served: ServedGate) -> None:
    with served.http() as client:
        codes = [preflight(client, "/v1/models").status_code]
        served.config = ALLOWED
        codes.append(preflight(client, "/v1/models").status_code)
        served.config = CONFIG
        codes.append(preflight(client, "/v1/models").status_code)
    assert codes == [403, 204, 403]
