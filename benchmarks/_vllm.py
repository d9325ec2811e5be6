"""vLLM as the other side of a benchmark: its bare server, and its own client."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from serving.cluster.ports import free_port
from serving.cluster.supervisor import descendants
from serving.engine.engine_args import engine_kwargs, environment
from serving.spec.model import TINY, ModelSpec

TOKENS = 64
STOP_S = 20
CLIENT = """
import json, sys
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
for line in sys.stdin:
    result = main(parser.parse_args(json.loads(line)))
    summary = {k: v for k, v in result.items() if not isinstance(v, list)}
    summary["first_error"] = next((error for error in result.get("errors", []) if error), "")
    print("RESULT " + json.dumps(summary))
    sys.stdout.flush()
"""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that select the model for both sides."""
    parser.add_argument("--source", default=TINY, help="path or Hugging Face id (default: tiny)")
    parser.add_argument("--accelerator", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--load-format", help="vLLM's load_format: 'dummy' needs no weights")


def model_spec(options: argparse.Namespace, **fields: Any) -> ModelSpec:
    """Return the model that the options describe."""
    return ModelSpec(
        source=options.source,
        accelerator=options.accelerator,
        max_model_len=options.max_model_len,
        engine_kwargs={"load_format": options.load_format} if options.load_format else {},
        **fields,
    )


def prepare() -> None:
    """Run every `finally` block on SIGTERM, and refuse a cluster that is not our own."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if os.environ.get("RAY_ADDRESS"):
        sys.exit(
            "RAY_ADDRESS must not be set, because this benchmark starts its own cluster; unset it"
        )


def flags(arguments: dict[str, Any]) -> list[str]:
    """Return engine arguments as flags of vLLM's command line, without absent ones."""
    words: list[str] = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list | tuple):
            words += [f"--{flag}", *map(str, value)]
        elif value is not None:
            words += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


class Server:
    """A server in a process of its own, in a session of its own.

    Args:
        port: The local port on which it listens.
        command: The command.
        variables: What is added to the environment.
    """

    def __init__(self, port: int, command: list[str], variables: dict[str, str]) -> None:
        self.port = port
        self.base_url = f"http://127.0.0.1:{port}"
        self._command = command
        self._environment = {**os.environ, **variables}

    def __enter__(self) -> Self:
        self.log = tempfile.NamedTemporaryFile(suffix=".log")
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        return self

    @property
    def pid(self) -> int:
        """The id of the server's own process."""
        return self._process.pid

    def wait(self, timeout_s: float = 300) -> None:
        """Wait until the server answers.

        Raises:
            RuntimeError: It ended or did not answer in time; the message has the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(self.output()[-3000:])
            time.sleep(0.1)

    def output(self) -> str:
        """Return everything that the server has printed."""
        return Path(self.log.name).read_text(errors="replace")

    def processes(self) -> list[int]:
        """Return the ids of the server's other processes: descendants and orphans."""
        root = self._process.pid
        return [*dict.fromkeys([*descendants(root), *filter(self._in_session, psutil.pids())])]

    def _in_session(self, pid: int) -> bool:
        try:
            return pid != self._process.pid and os.getsid(pid) == self._process.pid
        except OSError:
            return False

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
        others = [psutil.Process(pid) for pid in self.processes() if psutil.pid_exists(pid)]
        self._process.terminate()
        try:
            self._process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in psutil.wait_procs(others, timeout=5)[1]:
            process.kill()
        self.log.close()


class BareServer(Server):
    """vLLM's own OpenAI server, with a replica's engine arguments and environment.

    Like our endpoint, the server writes no access log.

    Args:
        model: The model.
        executor: vLLM's `distributed_executor_backend`; None: vLLM chooses.
        variables: Are added to its environment.
        rust: Use vLLM's Rust front end, which only `vllm serve` starts.
    """

    def __init__(
        self,
        model: ModelSpec,
        executor: str | None = None,
        variables: Mapping[str, str] | None = None,
        *,
        rust: bool = False,
    ) -> None:
        port = free_port()
        arguments = engine_kwargs(model) | {
            "served_model_name": model.model_id,
            "host": "127.0.0.1",
            "port": port,
            "disable_uvicorn_access_log": True,
            "distributed_executor_backend": executor,
        }
        server = ["vllm.entrypoints.openai.api_server", "--model", model.path]
        if rust:
            server = ["vllm.entrypoints.cli.main", "serve", model.path]
        # With the ray executor vLLM would otherwise join our cluster on this host.
        own = {**environment(model), "RAY_ADDRESS": "local", **(variables or {})}
        own |= {"VLLM_USE_RUST_FRONTEND": "1"} if rust else {}
        super().__init__(port, [sys.executable, "-m", *server, *flags(arguments)], own)


class Router(Server):
    """vllm-router, the Rust router that is put before several servers of vLLM.

    Args:
        servers: The addresses of the servers.
    """

    def __init__(self, servers: list[str]) -> None:
        port = free_port()
        arguments = {
            "worker_urls": servers,
            "host": "127.0.0.1",
            "port": port,
            "prometheus_port": free_port(),  # its default may be in use by our cluster
            "policy": "round_robin",
            "max_concurrent_requests": 100_000,
            "log_level": "warning",
        }
        command = [sys.executable, "-m", "vllm_router.launch_router", *flags(arguments)]
        super().__init__(port, command, {})


class Client:
    """The code of `vllm bench serve`, in one process for all runs, as its import is slow."""

    def __init__(self, model: ModelSpec, key: str) -> None:
        self._model = model
        # vLLM's client sends the key to both servers; bare vLLM ignores it.
        self._environment = {"OPENAI_API_KEY": key, "TQDM_DISABLE": "1", **environment(model)}

    def __enter__(self) -> Client:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            env={**os.environ, **self._environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return self

    def measure(
        self,
        base_url: str,
        streams: int,
        prompts: int,
        seed: int,
        tokens_in: int = TOKENS,
        tokens_out: int = TOKENS,
    ) -> dict[str, Any]:
        """Send `prompts` requests, `streams` at a time, and return vLLM's figures.

        Raises:
            RuntimeError: A request did not get all of its tokens.
        """
        options = {
            "base_url": base_url,
            "model": self._model.model_id,
            "tokenizer": self._model.path,
            "dataset_name": "random",
            "random_input_len": tokens_in,
            "random_output_len": tokens_out,
            "max_concurrency": streams,
            "num_prompts": prompts,
            # A repeated prompt would be found in the prefix cache.
            "seed": seed,
            "temperature": 0,
            "ignore_eos": True,
            "disable_tqdm": True,
            "save_detailed": True,  # otherwise it drops the errors
        }
        result = self._ask(flags(options))
        counts = (result["completed"], result["total_output_tokens"])
        expected = (prompts, prompts * tokens_out)
        if counts != expected:
            raise RuntimeError(
                f"{base_url}: requests and output tokens must be {expected}, got {counts}; the "
                f"first error: {result['first_error'][-500:]}"
            )
        # Random tokens that are decoded and encoded again may become a few more.
        if abs(result["total_input_tokens"] / (prompts * tokens_in) - 1) > 0.05:
            raise RuntimeError(
                f"{base_url}: input tokens must be about {prompts * tokens_in}, got "
                f"{result['total_input_tokens']}"
            )
        return result

    def _ask(self, arguments: list[str]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(arguments), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("RESULT "):
                result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
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
