"""vLLM's list of engine arguments; the reference is vLLM itself."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from serving.compat.vllm import engine_arguments

ASK_VLLM = """
import dataclasses, json
from vllm.engine.arg_utils import AsyncEngineArgs
print(json.dumps([field.name for field in dataclasses.fields(AsyncEngineArgs)]))
"""


@pytest.mark.slow
def test_the_list_of_arguments_is_that_of_vllm() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", ASK_VLLM], capture_output=True, text=True, check=True
    )
    assert engine_arguments() == set(json.loads(ran.stdout.splitlines()[-1]))


def test_the_list_has_well_known_arguments_and_vllm_is_not_imported() -> None:
    code = (
        "import sys; from serving.compat.vllm import engine_arguments;"
        "known = engine_arguments();"
        "assert {'model', 'max_num_seqs', 'enable_log_requests', 'seed'} <= known;"
        "assert not {'vllm', 'torch', 'ray'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
