"""Read the `/metrics` that an external engine publishes itself: vLLM, SGLang or TGI.

The names are those of vLLM 0.29 (`vllm.v1.metrics.loggers`), of SGLang's "Production Metrics"
(https://docs.sglang.io/references/production_metrics.html; needs `--enable-metrics`) and of TGI's
"Metrics" (https://huggingface.co/docs/text-generation-inference/reference/metrics).
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from serving.compat.vllm import ENGINE_METRICS, OLDER_METRICS, TRANSFER_METRICS
from workbench.records import ReplicaSample, Sample

SGLANG_METRICS = {
    "sglang_num_running_reqs": "running_requests",
    "sglang_num_queue_reqs": "waiting_requests",
    "sglang_token_usage": "kv_cache_usage",
    "sglang_cached_tokens": "prefix_hits",
    "sglang_prompt_tokens": "prompt_tokens",
    "sglang_generation_tokens": "output_tokens",
}
TGI_METRICS = {
    "tgi_batch_current_size": "running_requests",
    "tgi_queue_size": "waiting_requests",
    "tgi_request_input_length_sum": "prompt_tokens",
    "tgi_request_generated_tokens_sum": "output_tokens",
}
ENGINES = {"vllm": ENGINE_METRICS | TRANSFER_METRICS, "sglang": SGLANG_METRICS, "tgi": TGI_METRICS}
"""For each engine, its metrics without colon and `_total`, and the fields that they fill."""

_PREFIXES = (b"vllm", b"sglang", b"tgi")


def read_engine(text: bytes) -> tuple[str, dict[str, Any]] | None:
    """Return the engine's name and the fields of its `ReplicaSample`; None for another server.

    Over several label sets, such as the ranks of data parallelism, counts are summed, and the use
    of the KV cache is their mean.

    Raises:
        ValueError: The text is not in the Prometheus format.
    """
    from prometheus_client.parser import text_string_to_metric_families

    lines = [line for line in text.split(b"\n") if line.startswith(_PREFIXES)]
    values: dict[str, list[float]] = defaultdict(list)
    for family in text_string_to_metric_families(b"\n".join([*lines, b""]).decode()):
        for sample in family.samples:
            if not math.isnan(sample.value):
                values[_normalized(sample.name)].append(sample.value)
    for engine, metrics in ENGINES.items():
        fields = {field: values[name] for name, field in metrics.items() if name in values}
        if fields:
            if engine == "sglang" and "prefix_hits" in fields and "prompt_tokens" in fields:
                fields["prefix_queries"] = fields["prompt_tokens"]
            return engine, {name: _combined(name, all_) for name, all_ in fields.items()}
    return None


def engine_samples(now_s: float, host: str, text: bytes) -> list[Sample]:
    """Return the samples of an engine's `/metrics` under the name `host`.

    The list is empty if the text has no metric of a known engine.

    Raises:
        ValueError: The text is not in the Prometheus format.
    """
    found = read_engine(text)
    if found is None:
        return []
    engine, fields = found
    place: dict[str, Any] = {"deployment": host, "replica": engine, "node": host}
    return [ReplicaSample(time_s=now_s, state="running", **place, **fields)]


def _normalized(name: str) -> str:
    short = name.replace(":", "_", 1).removesuffix("_total")
    return OLDER_METRICS.get(short, short)


def _combined(name: str, values: list[float]) -> float:
    if name == "kv_cache_usage":
        return sum(values) / len(values)
    return sum(values) if name.endswith("_s") else round(sum(values))
