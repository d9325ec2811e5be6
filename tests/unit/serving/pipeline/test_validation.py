"""The check of a body before it wakes a model. Ground truth: which requests vLLM accepts."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest

from serving.gateway.bodies.fields import Kind
from serving.guardrail.guard import RefusedError
from serving.pipeline.validation import RequestValidator

MESSAGES = [{"role": "user", "content": "private text"}]
validator = RequestValidator()


def check(kind: Kind, fields: dict[str, Any]) -> None:
    before = copy.deepcopy(fields)

    async def run() -> None:
        await validator.check(kind, fields)

    asyncio.run(run())
    assert fields == before


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("chat", {"messages": MESSAGES, "model": "m", "temperature": 0.5, "stream": True}),
        ("completion", {"prompt": [1, 2, 3]}),
        ("responses", {"input": "private text"}),
        ("messages", {"model": "m", "max_tokens": 5, "messages": MESSAGES}),
        ("embedding", {"input": ["private text"]}),
        ("rerank", {"query": "private", "documents": ["text"]}),
        ("tokenize", {"messages": MESSAGES}),
    ],
)
def test_what_vllm_accepts_passes_unchanged(kind: Kind, fields: dict[str, Any]) -> None:
    check(kind, fields)


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        ("chat", {"model": "m"}, "messages"),
        ("chat", {"messages": MESSAGES, "temperature": "private text"}, "temperature"),
        ("completion", {"prompt": "private text", "n": {}}, "n"),
        ("responses", {"model": "m"}, "input"),
        ("messages", {"messages": MESSAGES, "model": "m"}, "max_tokens"),
        ("rerank", {"documents": ["private text"]}, "query"),
    ],
)
def test_what_vllm_rejects_is_an_error_that_names_the_field(
    kind: Kind, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        check(kind, fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert "private" not in str(caught.value)
