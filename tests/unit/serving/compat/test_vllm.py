"""vLLM's lists of arguments and parsers; the reference is vLLM itself."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest

from serving.compat.vllm import (
    chat_template_names,
    engine_arguments,
    frontend_arguments,
    reasoning_parsers,
    tool_call_parsers,
)
from serving.deploy.engine_kwargs import BACKENDS

ASK_VLLM = """
import dataclasses, json, typing
from vllm.config.structured_outputs import StructuredOutputsBackend
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.chat_utils import ChatTemplateContentFormatOption
from vllm.entrypoints.launchers.cli_args import FrontendArgs
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.transformers_utils.chat_templates.registry import CHAT_TEMPLATES_DIR

def names(cls):
    return [field.name for field in dataclasses.fields(cls)]

print(json.dumps({
    "engine": names(AsyncEngineArgs),
    "frontend": names(FrontendArgs),
    "tool_call": list(ToolParserManager.list_registered()),
    "reasoning": list(ReasoningParserManager.list_registered()),
    "templates": [path.name for path in CHAT_TEMPLATES_DIR.glob("*.jinja")],
    "backends": typing.get_args(StructuredOutputsBackend),
    "format": typing.get_args(ChatTemplateContentFormatOption),
}))
"""


@pytest.mark.slow
def test_the_lists_are_those_of_vllm() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", ASK_VLLM], capture_output=True, text=True, check=True
    )
    vllm = json.loads(ran.stdout.splitlines()[-1])
    assert engine_arguments() == set(vllm["engine"])
    assert frontend_arguments().keys() == set(vllm["frontend"])
    assert tool_call_parsers() == set(vllm["tool_call"])
    assert reasoning_parsers() == set(vllm["reasoning"])
    assert chat_template_names() == set(vllm["templates"])
    assert set(BACKENDS) == set(vllm["backends"])
    written = frontend_arguments()["chat_template_content_format"]
    assert ast.literal_eval(written.removeprefix("Literal")) == vllm["format"]


def test_the_lists_have_well_known_names() -> None:
    assert {"enable_auto_tool_choice", "lora_modules", "port"} <= frontend_arguments().keys()
    assert frontend_arguments()["response_role"] == "str"
    assert {"hermes", "mistral", "llama3_json"} <= tool_call_parsers()
    assert {"deepseek_r1", "qwen3"} <= reasoning_parsers()
    assert "template_chatml.jinja" in chat_template_names()


def test_the_list_has_well_known_arguments_and_vllm_is_not_imported() -> None:
    code = (
        "import sys; from serving.compat.vllm import engine_arguments;"
        "known = engine_arguments();"
        "assert {'model', 'max_num_seqs', 'enable_log_requests', 'seed'} <= known;"
        "assert not {'vllm', 'torch', 'ray'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
