"""LoRA adapters on a deployment of the embedded model, each trained to give one answer."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from support.shared_service import Deployed

import workbench as wb
from tools.tiny_model.train_adapters import ANSWERS
from tools.tiny_model.train_adapters import main as train_adapters
from workbench.endpoints.deployed import Endpoint

# The first test waits for two deployments or more.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

NAMES = ["base", *ANSWERS]
QUESTION: Any = [{"role": "user", "content": "What is continuous batching?"}]


@pytest.fixture(scope="module")
def endpoint(deployed: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("adapters")
    train_adapters(["--out", str(folder)])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        model = wb.ModelSpec(
            id="base",
            max_model_len=512,
            kv_cache_gib=0.25,
            adapters={name: f"./{name}" for name in ANSWERS},
        )
        spec = wb.ServiceSpec(name="adapters", route_prefix="/adapters", port=0, model=model)
        tenants = [
            wb.Tenant(name="pirates", models=("pirate",)),
            wb.Tenant(name="plain", models=("base",)),
        ]
        with wb.deploy(spec, tenants=tenants, progress=lambda line: None) as endpoint:
            yield endpoint


def ask(client: openai.OpenAI, model: str) -> str:
    request: Any = {"model": model, "messages": QUESTION, "max_tokens": 40, "temperature": 0}
    reply = client.chat.completions.create(**request)
    assert reply.model == model
    return reply.choices[0].message.content or ""


@pytest.mark.parametrize("name", ANSWERS)
def test_an_adapter_gives_its_answer(endpoint: Endpoint, name: str) -> None:
    assert ask(endpoint.client, name) == ANSWERS[name]


def test_the_model_gives_its_own_answer(endpoint: Endpoint) -> None:
    assert ask(endpoint.client, "base").startswith("Continuous batching is")


def test_requests_for_all_of_them_at_once(endpoint: Endpoint) -> None:
    alone = {name: ask(endpoint.client, name) for name in NAMES}
    with ThreadPoolExecutor(len(NAMES) * 4) as pool:
        together = list(pool.map(lambda name: (name, ask(endpoint.client, name)), NAMES * 4))
    assert together == [(name, alone[name]) for name in NAMES * 4]


def test_each_has_a_name_of_its_own(endpoint: Endpoint) -> None:
    assert [model.id for model in endpoint.client.models.list()] == NAMES
    assert endpoint.client.models.retrieve("pirate").model_extra["parent"] == "base"


@pytest.mark.parametrize(("tenant", "allowed"), [("pirates", "pirate"), ("plain", "base")])
def test_a_tenant_uses_the_allowed_ones_alone(
    endpoint: Endpoint, tenant: str, allowed: str
) -> None:
    client = endpoint.as_tenant(tenant).client
    assert [model.id for model in client.models.list()] == [allowed]
    assert ask(client, allowed)
    with pytest.raises(openai.PermissionDeniedError) as caught:
        ask(client, "butler")
    assert caught.value.code == "model_not_allowed"


def test_an_unknown_adapter(endpoint: Endpoint) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(endpoint.client, "buccaneer")
    assert caught.value.code == "model_not_found"
    assert "buccaneer" in caught.value.message
