"""How near one replica comes to what the hardware allows.

Decode at batch 1 reads every weight once a token (of the input embedding one row), so that
bandwidth / bytes of weights bounds its tokens/s. Prefill computes 2 FLOP a weight and token, and
4 × heads × head size × positions seen a layer in attention, so that the rate of a large matrix
product bounds it. Both bounds use what this device is measured to do here: a copy, counting bytes
read and written, and a product of two square matrices (bf16; on a CPU float32). `decode_share` and
`prefill_share` are measured over bound. The model is Llama-3.1-8B's shape on a GPU, the embedded
one on a CPU.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from _report import report
from _shape import llama_parameters, write_shape
from _vllm import Client, prepare

import workbench as wb


def main() -> None:
    """Measure the device, then the endpoint; print the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--accelerator", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prefill-tokens", type=int, help="8192 on a GPU, 1024 on a CPU")
    options = parser.parse_args()
    prepare()
    # Before the engine takes the memory.
    device = bandwidth_and_rate(options.accelerator)
    print({name: f"{value:.3g}" for name, value in device.items()}, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        measured = endpoint_figures(options, Path(folder))
    report("physical_limit", device | measured | shares(device, measured))


def bandwidth_and_rate(accelerator: str) -> dict[str, float]:
    """Bytes/s of a copy and FLOP/s of a bf16 product, in a process that gives the memory back."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_device, accelerator).result()


def measure_device(accelerator: str) -> dict[str, float]:
    """Medians of ten, after three that warm up, on data that is not all zeros."""
    import torch

    on_gpu = accelerator == "gpu"
    place, side = ("cuda", 8192) if on_gpu else ("cpu", 1024)
    # On a CPU without AMX a bf16 product has no fast path in torch.
    number = torch.bfloat16 if on_gpu else torch.float32
    source = torch.randn(2**30 if on_gpu else 2**26, device=place, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=place, dtype=number) for _ in range(2))

    def seconds(call: Callable[[], Any]) -> float:
        taken = []
        for _ in range(13):
            if on_gpu:
                torch.cuda.synchronize()
            began = time.perf_counter()
            call()
            if on_gpu:
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
        return median(taken[3:])

    copied = seconds(lambda: target.copy_(source))
    multiplied = seconds(lambda: a @ b)
    return {
        "bytes_per_s": 2 * source.numel() * source.element_size() / copied,
        "flop_per_s": 2 * side**3 / multiplied,
    }


def endpoint_figures(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Tokens/s of decode and of prefill at one stream, and what the model's shape asks for."""
    on_gpu = options.accelerator == "gpu"
    long = options.prefill_tokens or (8192 if on_gpu else 1024)
    arguments = {"load_format": "dummy", "enable_prefix_caching": False}
    model = wb.ModelSpec(
        source=str(write_shape(folder)) if on_gpu else "tiny",
        accelerator=options.accelerator,
        # One whole prompt a step, so that a prefill is one pass.
        max_model_len=2 * long,
        engine_kwargs=arguments | {"max_num_batched_tokens": 2 * long} if on_gpu else {},
    )
    with (
        wb.deploy(wb.ServiceSpec(port=0, model=model)) as endpoint,
        Client(model, endpoint.api_key.get_secret_value()) as client,
    ):
        url = endpoint.base_url.removesuffix("/v1")

        def measured(figure: str, tokens_in: int, tokens_out: int) -> float:
            client.measure(url, 1, 4, 0, tokens_in, tokens_out)
            runs = [
                client.measure(url, 1, 4, seed, tokens_in, tokens_out)[figure]
                for seed in range(1, options.repeats + 1)
            ]
            return median(runs) / 1e3

        tpot_s = measured("median_tpot_ms", 64, 256)
        ttft_s = measured("median_ttft_ms", long, 2)
    return {
        "decode_tokens_per_s": 1 / tpot_s,
        "prefill_tokens_per_s": long / ttft_s,
        "prefill_tokens": long,
        **demands(json.loads((Path(model.path) / "config.json").read_text()), long),
    }


def demands(config: dict[str, Any], tokens: int) -> dict[str, float]:
    """Bytes of weights a decoded token reads (bf16), and FLOP of a prefill of `tokens`."""
    layers, embedding = llama_parameters(config)
    width = config["num_attention_heads"] * config["head_dim"]
    # A token sees half of the prompt on average; of the output layer only the last row counts.
    attention = 4 * width * config["num_hidden_layers"] * tokens * (tokens / 2)
    return {
        "weight_bytes": 2 * (layers + embedding),
        "prefill_flop": 2 * layers * tokens + attention + 2 * embedding,
    }


def shares(device: dict[str, float], measured: dict[str, float]) -> dict[str, float]:
    """What the device would allow, and the share of it that was reached."""
    decode = device["bytes_per_s"] / measured["weight_bytes"]
    prefill = measured["prefill_tokens"] * device["flop_per_s"] / measured["prefill_flop"]
    return {
        "decode_limit_tokens_per_s": decode,
        "prefill_limit_tokens_per_s": prefill,
        "decode_share": round(measured["decode_tokens_per_s"] / decode, 3),
        "prefill_share": round(measured["prefill_tokens_per_s"] / prefill, 3),
    }


if __name__ == "__main__":
    main()
