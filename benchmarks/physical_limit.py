"""How close one replica comes to the limits of the hardware.

Decode at batch size 1 reads every weight once per token (of the input embedding, one row), so its
tokens/s cannot exceed bandwidth over bytes of weights. Prefill computes 2 FLOP per weight and
token, and 4 × heads × head size × visible positions per layer in attention, so the rate of a large
matrix product limits it. Both limits use rates measured on this device: a copy, counting bytes read
and written, and a product of two square matrices (bfloat16; float32 on a CPU). `decode_share` and
`prefill_share` are measured rate over limit. The model is Llama-3.1-8B's shape on a GPU, and the
embedded one on a CPU.
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
    """Measure the device, then the endpoint, and print the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--accelerator", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prefill-tokens", type=int, help="default: 8192 on a GPU, 1024 on a CPU")
    options = parser.parse_args()
    prepare()
    # Before the engine uses the memory.
    device = bandwidth_and_rate(options.accelerator)
    print({name: f"{value:.3g}" for name, value in device.items()}, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        measured = endpoint_figures(options, Path(folder))
    report("physical_limit", device | measured | shares(device, measured))


def bandwidth_and_rate(accelerator: str) -> dict[str, float]:
    """Measure bytes/s of a copy and FLOP/s of a product, in a process that frees its memory."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure_device, accelerator).result()


def measure_device(accelerator: str) -> dict[str, float]:
    """Return medians of ten runs after three warm-up runs, on random data."""
    import torch

    on_gpu = accelerator == "gpu"
    device, side = ("cuda", 8192) if on_gpu else ("cpu", 1024)
    # torch has no fast bfloat16 product on a CPU without AMX.
    dtype = torch.bfloat16 if on_gpu else torch.float32
    source = torch.randn(2**30 if on_gpu else 2**26, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def seconds(call: Callable[[], Any]) -> float:
        times = []
        for _ in range(13):
            if on_gpu:
                torch.cuda.synchronize()
            started = time.perf_counter()
            call()
            if on_gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return median(times[3:])

    copy_s = seconds(lambda: target.copy_(source))
    product_s = seconds(lambda: a @ b)
    return {
        "bytes_per_s": 2 * source.numel() * source.element_size() / copy_s,
        "flop_per_s": 2 * side**3 / product_s,
    }


def endpoint_figures(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Measure tokens/s of decode and prefill at one stream, and compute the model's demands."""
    on_gpu = options.accelerator == "gpu"
    prompt_tokens = options.prefill_tokens or (8192 if on_gpu else 1024)
    arguments = {"load_format": "dummy", "enable_prefix_caching": False}
    model = wb.ModelSpec(
        source=str(write_shape(folder)) if on_gpu else "tiny",
        accelerator=options.accelerator,
        # Room for one whole prompt per step, so that a prefill is one pass.
        max_model_len=2 * prompt_tokens,
        engine_kwargs=arguments | {"max_num_batched_tokens": 2 * prompt_tokens} if on_gpu else {},
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
            return float(median(runs)) / 1e3

        tpot_s = measured("median_tpot_ms", 64, 256)
        ttft_s = measured("median_ttft_ms", prompt_tokens, 2)
    return {
        "decode_tokens_per_s": 1 / tpot_s,
        "prefill_tokens_per_s": prompt_tokens / ttft_s,
        "prefill_tokens": prompt_tokens,
        **demands(json.loads((Path(model.path) / "config.json").read_text()), prompt_tokens),
    }


def demands(config: dict[str, Any], tokens: int) -> dict[str, float]:
    """Return the bytes of weights read per decoded token, and the FLOP of a prefill."""
    layers, embedding = llama_parameters(config)
    width = config["num_attention_heads"] * config["head_dim"]
    # A token sees half of the prompt on average; the output layer runs for the last token only.
    attention = 4 * width * config["num_hidden_layers"] * tokens * (tokens / 2)
    return {
        "weight_bytes": 2 * (layers + embedding),
        "prefill_flop": 2 * layers * tokens + attention + 2 * embedding,
    }


def shares(device: dict[str, float], measured: dict[str, float]) -> dict[str, float]:
    """Return the limits of the device, and the shares of them that were reached."""
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
