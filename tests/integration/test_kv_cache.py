"""The size of the KV cache, as a real engine reports it."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest

from serving.models.embedded import tiny_model_path
from workbench.analysis.kv_cache import kv_cache_size
from workbench.endpoints.deployed import Endpoint

pytestmark = pytest.mark.engine


def test_the_engine_still_reports_its_cache_size_later(endpoint: Endpoint) -> None:
    config = json.loads((tiny_model_path() / "config.json").read_text())
    heads = config["num_key_value_heads"] * config["head_dim"]
    size = {"bfloat16": 2, "float32": 4}[endpoint.spec.models[0].resolved_dtype]
    token_bytes = 2 * config["num_hidden_layers"] * heads * size  # a key and a value
    time.sleep(5)  # Ray drops a gauge that is not set again for two seconds
    deadline = time.monotonic() + 30
    # On a busy machine it may be set later than that, and is missing until then.
    while (cache := kv_cache_size(endpoint)) is None:
        assert time.monotonic() < deadline, "the engine reports no size"
        time.sleep(0.5)
    assert (
        cache.slots
        == cache.blocks * cache.block
        == endpoint.spec.models[0].kv_cache_gib * (2**30 // token_bytes)
    )
    other = SimpleNamespace(deployment="another")
    assert kv_cache_size(other) is None  # type: ignore[arg-type]
