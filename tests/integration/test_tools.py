"""Tool calls, structured output and adapters, on one deployment of the embedded model.

The tiny model cannot call a tool by itself. A regular expression in the request makes it write a
call; everything after the model's text is the product's own path.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageFunctionToolCall
from pydantic import BaseModel, Field
from support.lora import write_adapter
from support.shared_service import Deployed

import workbench as wb
from serving.models.embedded import tiny_model_path
from workbench.endpoints.deployed import Endpoint

pytestmark = pytest.mark.engine

QUESTION: Any = [{"role": "user", "content": "Will it rain in Oslo?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
CALL = r'<tool_call>\{"name": "weather", "arguments": \{"city": "Oslo"\}\}</tool_call>'
OTHER_LINE = "A sentence about something else, which no tool needs"


@pytest.fixture(scope="module")
def endpoint(
    deployed: Deployed, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    adapter = tmp_path_factory.mktemp("adapter")
    write_adapter(tiny_model_path(), adapter)
    kwargs = {
        "enable_auto_tool_choice": True,
        "tool_call_parser": "hermes",
        "lora_modules": [{"name": "pirate", "path": str(adapter)}],
    }
    spec = wb.ServiceSpec(
        name="tools",
        route_prefix="/tools",
        port=0,
        model=wb.ModelSpec(id="base", max_model_len=1024, engine_kwargs=kwargs),
    )
    with wb.deploy(spec, progress=lambda line: None) as endpoint:
        yield endpoint
