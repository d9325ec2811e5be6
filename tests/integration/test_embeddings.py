"""Embeddings, scores and rankings of the smaller embedded model, against transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from support.shared_service import Deployed

import workbench as wb
from serving.models.embedded import tiny_model_path
from workbench.endpoints.deployed import Endpoint

# The first test waits for two deployments or more.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

QUERY = "What is a KV cache?"
TEXTS = [
    "The KV cache stores the attention keys and values of earlier tokens.",
    "A token bucket allows short bursts.",
    "Autoscaling changes the number of replicas.",
]
NEAR = 0.01
"""Allowed difference of a cosine; the engine may compute with bfloat16."""

Embed = Callable[[str], list[float]]


@pytest.fixture(scope="module")
def endpoint(deployed: Deployed) -> Iterator[Endpoint]:
    spec = wb.ServiceSpec(
        name="embeddings",
        route_prefix="/embeddings",
        port=0,
        model=wb.ModelSpec(
            source="nano",
            id="embedder",
            max_model_len=512,
            engine_kwargs={"runner": "pooling", "convert": "embed"},
        ),
    )
    with wb.deploy(spec, progress=lambda line: None) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def embed() -> Embed:
    """The last hidden state of the last token, of length 1, as transformers computes it."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = tiny_model_path(name="nano")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32)

    def vector(text: str) -> list[float]:
        with torch.no_grad():
            state = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1]
        values: list[float] = torch.nn.functional.normalize(state, dim=0).tolist()
        return values

    return vector


def cosine(a: list[float], b: list[float]) -> float:
    return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


def post(endpoint: Endpoint, path: str, body: dict[str, Any]) -> httpx.Response:
    url = endpoint.base_url.removesuffix("/v1") + path
    key = endpoint.api_key.get_secret_value()
    return httpx.post(url, json=body, headers={"authorization": f"Bearer {key}"}, timeout=60)


def test_vectors_are_those_of_transformers(endpoint: Endpoint, embed: Embed) -> None:
    for encoding in (openai.omit, "float"):  # by default the client asks for base64
        answer = endpoint.client.embeddings.create(
            model="embedder", input=TEXTS, encoding_format=encoding
        )
        assert [item.index for item in answer.data] == [0, 1, 2]
        for item, text in zip(answer.data, TEXTS, strict=True):
            assert cosine(item.embedding, embed(text)) > 1 - NEAR
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 3


def test_scores_are_cosines(endpoint: Endpoint, embed: Embed) -> None:
    body = {"model": "embedder", "text_1": QUERY, "text_2": TEXTS}
    for path in ("/score", "/v1/score"):
        scores = [item["score"] for item in post(endpoint, path, body).json()["data"]]
        expected = [cosine(embed(QUERY), embed(text)) for text in TEXTS]
        assert scores == pytest.approx(expected, abs=NEAR)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_are_ranked_by_their_cosine(endpoint: Endpoint, embed: Embed, path: str) -> None:
    body = {"model": "embedder", "query": QUERY, "documents": TEXTS, "top_n": 2}
    results = post(endpoint, path, body).json()["results"]
    cosines = {index: cosine(embed(QUERY), embed(text)) for index, text in enumerate(TEXTS)}
    best = sorted(cosines, key=lambda index: -cosines[index])[:2]
    assert [result["index"] for result in results] == best
    assert [result["relevance_score"] for result in results] == pytest.approx(
        [cosines[index] for index in best], abs=NEAR
    )


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages"])
def test_a_model_for_embeddings_says_that_it_cannot_generate(endpoint: Endpoint, path: str) -> None:
    messages = [{"role": "user", "content": "a"}]
    body: dict[str, Any] = {"model": "embedder", "max_tokens": 4}
    body |= {"prompt": "a"} if path == "/v1/completions" else {"messages": messages}
    reply = post(endpoint, path, body)
    assert reply.status_code == 404
    error = reply.json()["error"]
    assert error["code"] == "unsupported_route"
    assert error["message"].startswith(f"This model cannot serve {path}: it supports embed")
