"""vLLM itself, as the other side of a benchmark: its bare server, and its own client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from serving.cluster import free_port
from serving.engine import engine_kwargs, environment
from serving.spec import ModelSpec

CLIENT = """
import asyncio, json, os, sys
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
for line in sys.stdin:
    job = json.loads(line)
    os.environ["OPENAI_API_KEY"] = job["key"]
    result = main(parser.parse_args(job["arguments"]))
    print("RESULT " + json.dumps({k: v for k, v in result.items() if not isinstance(v, list)}))
    sys.stdout.flush()
"""


class BareServer:
    """`python -m vllm.entrypoints.openai.api_server` with a replica's arguments and environment."""

    def __init__(self, model: ModelSpec, *extra: str) -> None:
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        arguments = ["--model", model.path, "--served-model-name", model.model_id]
        arguments += ["--host", "127.0.0.1", "--port", str(self.port), *extra]
        for name, value in engine_kwargs(model).items():
            flag = f"--{name.replace('_', '-')}"
            arguments += [flag] if value is True else [flag, str(value)]
        self._command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments]
        self._environment = {**os.environ, **environment(model)}

    def __enter__(self) -> BareServer:
        self.log = tempfile.NamedTemporaryFile(suffix=".log")
        self._process = subprocess.Popen(
            self._command, env=self._environment, stdout=self.log, stderr=subprocess.STDOUT
        )
        return self

    def wait(self, timeout_s: float = 300) -> None:
        """Until it answers; raises RuntimeError with its log's end if it never does."""
        deadline = time.monotonic() + timeout_s
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(Path(self.log.name).read_text()[-2000:])
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.base_url}/health", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Client:
    """`vllm bench serve`'s own code in one process for all measurements (its import is slow)."""

    def __init__(self, model: ModelSpec) -> None:
        self._model = model

    def __enter__(self) -> Client:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return self

    def measure(self, base_url: str, key: str, streams: int, prompts: int) -> dict[str, Any]:
        """One run of `prompts` requests, 64 tokens in and 64 out, `streams` at a time."""
        arguments = ["--base-url", base_url, "--backend", "openai", "--endpoint", "/v1/completions"]
        arguments += ["--model", self._model.model_id, "--tokenizer", self._model.path]
        arguments += ["--dataset-name", "random", "--random-input-len", "64"]
        arguments += ["--random-output-len", "64", "--ignore-eos", "--disable-tqdm"]
        arguments += ["--max-concurrency", str(streams), "--num-prompts", str(prompts)]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"key": key, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("RESULT "):
                result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
                if result["completed"] != prompts:
                    raise RuntimeError(f"{result['completed']} of {prompts} requests completed")
                return result
        raise RuntimeError("vLLM's client ended without a result")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
