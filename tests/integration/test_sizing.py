"""Computed sizes against what vLLM's engine reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from serving.models.embedded import tiny_model_path
from serving.sizing.architecture import read_architecture
from serving.sizing.memory import (
    BLOCK_TOKENS,
    GIB,
    DataTypes,
    Layout,
    blocks,
    kv_token_bytes,
    weight_bytes,
)

pytestmark = [pytest.mark.engine, pytest.mark.slow]
BFLOAT16 = DataTypes()

REPORT = """
import json, os, sys

def packed(module):
    # What a CPU with AMX or oneDNN holds in place of a layer's weight.
    linear = getattr(module, "cpu_linear", None)
    if linear is None or module.weight.numel():
        return 0
    cells = [cell.cell_contents for cell in linear.__closure__]
    tensors = sum(cell.numel() * cell.element_size() for cell in cells if hasattr(cell, "numel"))
    return tensors + sum(2 * cell.n * cell.k for cell in cells if hasattr(cell, "handler_tensor"))

def weight_bytes(worker):
    model = worker.model_runner.get_model()
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    return whole + sum(packed(module) for module in model.modules())

if __name__ == "__main__":
    from vllm import LLM

    llm = LLM(**json.loads(sys.argv[1]))
    cache = llm.llm_engine.vllm_config.cache_config
    report = {"blocks": cache.num_gpu_blocks, "block": cache.block_size}
    report["weights"] = llm.collective_rpc(weight_bytes)
    print("RESULT " + json.dumps(report), flush=True)
    llm.llm_engine.engine_core.shutdown()
    os._exit(0)  # a normal exit would wait for threads that are no longer needed
"""


def engine_report(script: Path, tensor: int) -> dict[str, Any]:
    """Run vLLM in a process of its own, and return the memory it uses."""
    script.write_text(REPORT)
    arguments = {
        "model": str(tiny_model_path()),
        "tensor_parallel_size": tensor,
        "max_model_len": 1024,
        "kv_cache_memory_bytes": GIB // 4,
        "enforce_eager": True,
        "dtype": "bfloat16",
        "worker_extension_cls": "serving.engine.amx.Extension",
    }
    variables = {
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(str(i) for i in range(tensor)),
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # to send the function that counts
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(script.parent)]),
    }
    process = subprocess.run(
        [sys.executable, str(script), json.dumps(arguments)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=280,
    )
    lines = [line for line in process.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, process.stderr[-3000:]
    report: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    return report


@pytest.mark.parametrize("tensor", [1, 2])
def test_engine_uses_the_computed_memory(tmp_path: Path, tensor: int) -> None:
    report = engine_report(tmp_path / "report.py", tensor)
    tiny, layout = read_architecture(tiny_model_path()), Layout(tensor)
    assert tiny is not None
    assert report["block"] == BLOCK_TOKENS["cpu"]
    computed = blocks(GIB / 4, kv_token_bytes(tiny, layout, BFLOAT16), BLOCK_TOKENS["cpu"])
    assert computed == pytest.approx(report["blocks"], rel=0.1)
    assert len(report["weights"]) == tensor
    for held in report["weights"]:
        assert weight_bytes(tiny, layout, BFLOAT16) == pytest.approx(held, rel=0.1)
