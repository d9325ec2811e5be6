"""Names of models over real sockets. Ground truth: what reaches the application."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from support.gate_clients import replace_config
from support.gate_server import AUTHORIZED, CONFIG, KEY, ServedGate, Server

from serving.gateway.bodies.fields import POST_ROUTES
from serving.gateway.config import GateConfig, ServedModel
from serving.spec.tenants import Tenant, key_hash

HUB_ID, SHORT = "org/Model-7B", "Model-7B"
MODELS = (
    ServedModel(id=SHORT, aliases=(HUB_ID,), adapters=("legal",), max_model_len=4096),
    ServedModel(id="small"),
)


def config(models: tuple[str, ...] | None = None, **fields: Any) -> GateConfig:
    tenant = Tenant(name="ada", key_hash=key_hash(KEY), models=models)
    return replace_config(tenants=(tenant,), models=MODELS, **fields)


def named(served: ServedGate) -> list[Any]:
    """The models in the bodies that reached the application."""
    return [json.loads(request.body).get("model") for request in served.app.log]


@pytest.mark.parametrize("path", POST_ROUTES)
def test_the_application_gets_the_id_of_an_alias_on_every_route(
    served: ServedGate, path: str
) -> None:
    served.config = config()
    with served.http(AUTHORIZED) as client:
        for name in (SHORT, HUB_ID, "legal", "small"):
            assert client.post(path, json={"model": name}).status_code == 200
    assert named(served) == [SHORT, SHORT, "legal", "small"]


@pytest.mark.parametrize("path", POST_ROUTES)
def test_an_unknown_model_is_404_and_names_those_that_exist(served: ServedGate, path: str) -> None:
    served.config = config()
    with served.http(AUTHORIZED) as client:
        for name in ("nothing", "org/model-7b", "auto", "", "a" * 500, "x\r\ny"):
            reply = client.post(path, json={"model": name})
            error = reply.json()["error"]
            assert reply.status_code == 404
            assert (error["code"], error["param"]) == ("model_not_found", "model")
            assert f"{SHORT}, {HUB_ID}, legal, small" in error["message"]
            assert len(error["message"]) < 200
    assert served.app.log == []


def test_a_missing_model_is_the_only_one_or_400(served: ServedGate) -> None:
    with served.http(AUTHORIZED) as client:
        assert client.post("/v1/completions", json={}).status_code == 200
        served.config = config()
        error = client.post("/v1/completions", json={}).json()["error"]
        assert (error["code"], error["param"]) == ("missing_parameter", "model")
    assert named(served) == [CONFIG.models[0].id]


def test_with_a_router_the_application_chooses(served: ServedGate) -> None:
    served.config = config(auto=True)
    with served.http(AUTHORIZED) as client:
        for body in ({}, {"model": "auto"}, {"model": None}):
            assert client.post("/v1/completions", json=body).status_code == 200
    assert named(served) == [None, "auto", None]


@pytest.mark.parametrize("allowed", [SHORT, HUB_ID])
def test_a_tenant_may_use_a_model_by_whichever_name(served: ServedGate, allowed: str) -> None:
    served.config = config(models=(allowed,))
    with served.http(AUTHORIZED) as client:
        replies = {
            name: client.post("/v1/completions", json={"model": name}).status_code
            for name in (SHORT, HUB_ID, "legal", "small")
        }
    assert replies == {SHORT: 200, HUB_ID: 200, "legal": 403, "small": 403}


class TestList:
    def test_ids_aliases_and_adapters_are_listed(self, served: ServedGate) -> None:
        served.config = config()
        models = served.openai().models.list().data
        assert [model.id for model in models] == [SHORT, HUB_ID, "legal", "small"]
        assert {model.object for model in models} == {"model"}
        cards = {model.id: model.model_dump() for model in models}
        assert [cards[name].get("max_model_len") for name in cards] == [4096, 4096, 4096, None]
        assert [cards[name]["root"] for name in cards] == [SHORT, SHORT, SHORT, "small"]
        assert cards["legal"]["parent"] == SHORT
        assert served.app.log == []

    def test_the_router_is_listed_as_auto(self, served: ServedGate) -> None:
        served.config = config(auto=True)
        assert [model.id for model in served.openai().models.list()][-1] == "auto"
        assert served.openai().models.retrieve("auto").id == "auto"

    def test_only_models_that_the_tenant_may_use_are_listed(self, served: ServedGate) -> None:
        served.config = config(models=(HUB_ID,))
        client = served.openai()
        assert [model.id for model in client.models.list()] == [SHORT, HUB_ID]
        for name in ("small", "legal", "nothing"):
            with pytest.raises(openai.NotFoundError) as caught:
                client.models.retrieve(name)
            assert caught.value.code == "model_not_found"
            assert caught.value.body["message"].endswith(f"; the models are {SHORT}, {HUB_ID}.")

    def test_a_model_is_found_by_each_name(self, server: Server) -> None:
        with server.serving(root_path="/llm") as served:
            served.config = config()
            with served.http(AUTHORIZED) as client:
                for name in (SHORT, HUB_ID, "legal"):
                    assert client.get(f"/llm/v1/models/{name}").json()["id"] == name
                    quoted = name.replace("/", "%2F")
                    assert client.get(f"/llm/v1/models/{quoted}").json()["id"] == name
                assert client.get("/llm/v1/models/").status_code == 404

    def test_head_has_no_body(self, served: ServedGate) -> None:
        with served.http(AUTHORIZED) as client:
            for path in ("/v1/models", "/v1/models/m"):
                reply = client.head(path)
                assert (reply.status_code, reply.content) == (200, b"")
                assert reply.headers["content-length"] == str(len(client.get(path).content))
            assert client.head("/v1/models/x").status_code == 404

    def test_the_engines_context_length_is_used_where_the_spec_has_none(
        self, served: ServedGate
    ) -> None:
        served.gate._models._context_length = 2048
        served.config = config()
        models = served.openai().models.list().data
        lengths = {model.id: model.model_dump()["max_model_len"] for model in models}
        assert (lengths[SHORT], lengths["small"]) == (4096, 2048)
