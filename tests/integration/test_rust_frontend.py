"""A replica with vLLM's Rust front end and a real engine, without Ray or Serve.

The reference is vLLM's own server, which answers on the same engine what the Rust front end leaves
to it. `make rust-frontend` fetches the program, which vLLM's CPU build does not have.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
from support import rust_replica
from support.gate_server import AUTHORIZED
from support.processes import process_group

from serving.cluster.supervisor import descendants
from serving.compat.vllm_rust import rust_program
from serving.engine.engine_args import environment
from serving.errors import MissingPackageError
from serving.spec.model import ModelSpec

pytestmark = [pytest.mark.engine, pytest.mark.timeout(400)]

QUESTION = [{"role": "user", "content": "What is a token?"}]
GREEDY = {"temperature": 0, "max_tokens": 24}
USAGE = {"stream_options": {"include_usage": True}}
IN_PYTHON = {"stream_options": {"include_usage": True, "continuous_usage_stats": False}}
"""Options that the Rust front end is not asked for, which change nothing."""
START_S = 200.0


class Replica(NamedTuple):
    """A running replica: its process, and a client of it."""

    process: subprocess.Popen[bytes]
    client: httpx.Client

    def post(self, path: str, **fields: Any) -> httpx.Response:
        body = {"model": rust_replica.MODEL} | fields
        return self.client.post(f"/v1/{path}", json=body)

    def open_stream(self) -> Any:
        """Open a stream that is longer than any test needs it."""
        body = {"model": rust_replica.MODEL, "prompt": "A token is", "stream": True}
        more = {"max_tokens": rust_replica.MAX_TOKENS, "ignore_eos": True, "temperature": 0}
        return self.client.stream("POST", "/v1/completions", json=body | more)

    def figures(self) -> dict[str, Any]:
        return dict(self.client.get("/usage").json())

    def charged(self) -> tuple[int, int]:
        prompt, output, errors = self.figures()["charged"]
        assert errors == 0
        return prompt, output

    def metric(self, name: str) -> float:
        page = self.client.get("/metrics").text
        return sum(float(x) for x in re.findall(rf"^{name}{{.*}} (\S+)$", page, re.MULTILINE))

    def child(self, name: str) -> psutil.Process:
        """Its process with this title."""
        found = []
        for pid in descendants(self.process.pid):
            with suppress(psutil.NoSuchProcess):  # It has ended.
                process = psutil.Process(pid)
                title = " ".join(process.cmdline()).split("/")[-1]
                if title.startswith(name) or process.name() == name:
                    found.append(process)
        (child,) = found
        return child


@contextmanager
def running(folder: Path) -> Iterator[Replica]:
    """Start a replica, and end it with all its processes."""
    try:
        program = rust_program()
    except MissingPackageError as error:
        pytest.skip(str(error))
    own = {"VLLM_RUST_FRONTEND_PATH": str(program), "TMPDIR": str(folder)}
    variables = os.environ | environment(ModelSpec()) | own
    log, port = folder / "log", folder / "port"
    command = [sys.executable, rust_replica.__file__, str(port)]
    with (
        log.open("w") as output,
        process_group(command, stdout=output, stderr=output, env=variables) as process,
    ):
        wait_until(lambda: port.exists() or process.poll() is not None, START_S)
        assert port.exists(), log.read_text()[-3000:]
        url = f"http://127.0.0.1:{port.read_text()}"
        with httpx.Client(base_url=url, headers=AUTHORIZED, timeout=60) as client:
            yield Replica(process, client)


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    with running(tmp_path_factory.mktemp("replica")) as started:
        yield started


def events(content: bytes) -> list[dict[str, Any]]:
    """The events of a stream as JSON, without `[DONE]`."""
    assert content.rstrip().endswith(b"data: [DONE]")
    data = re.findall(rb"^data: (\{.*\})$", content, re.MULTILINE)
    return [json.loads(event) for event in data]


def answer(reply: httpx.Response) -> dict[str, Any]:
    """The parts of a stream on which both front ends agree."""
    parts = events(reply.content)
    choices = [choice for part in parts for choice in part["choices"]]
    usage = [part["usage"] for part in parts if part.get("usage")]
    texts = [choice.get("delta", {}).get("content") or choice.get("text") for choice in choices]
    return {
        "text": "".join(filter(None, texts)),
        "finish": [c["finish_reason"] for c in choices if c.get("finish_reason")],
        "usage": [(u["prompt_tokens"], u["completion_tokens"], u["total_tokens"]) for u in usage],
        "model": {part["model"] for part in parts},
    }


def is_from_rust(content: bytes) -> bool:
    """Its ids have 8 hexadecimal digits, and those of vLLM's own server have more."""
    return re.search(rb'"id":"\w+-[0-9a-f]{8}"', content) is not None


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.1)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": QUESTION} | GREEDY | USAGE,
        {"messages": QUESTION, "temperature": 0} | USAGE,  # to the end of the answer
        {"messages": QUESTION, "max_tokens": 24, "seed": 3} | USAGE,  # the model's own sampling
        {"messages": QUESTION, "temperature": 0, "max_completion_tokens": 5} | USAGE,
        {"messages": [{"role": "system", "content": "Be brief. \u00e9\u4e2d\U0001f600"}, *QUESTION]}
        | GREEDY
        | USAGE,
        {"prompt": "A token is"} | GREEDY | USAGE,
        {"prompt": "A token is", "temperature": 0} | USAGE,
        {"prompt": "A token is", "stop": ["text", "q"]} | GREEDY | USAGE,
        {"prompt": "A token is", "stop": "text", "include_stop_str_in_output": True}
        | GREEDY
        | USAGE,
        {"prompt": "A", "ignore_eos": True, "min_tokens": 9, "max_tokens": 40, "temperature": 0}
        | USAGE,
        {
            "prompt": "A token is", "max_tokens": 24, "seed": 7, "temperature": 0.9, "top_p": 0.9,
            "top_k": 20, "min_p": 0.01, "frequency_penalty": 0.3, "presence_penalty": 0.2,
            "repetition_penalty": 1.1, "stop_token_ids": [11], "user": "someone", "n": 1,
        } | USAGE,
    ],
)  # fmt: skip
def test_its_streams_are_those_of_the_other(replica: Replica, fields: dict[str, Any]) -> None:
    path = "chat/completions" if "messages" in fields else "completions"
    own = replica.post(path, stream=True, **fields)
    other = replica.post(path, stream=True, **fields | IN_PYTHON)
    assert (own.status_code, other.status_code) == (200, 200)
    assert (is_from_rust(own.content), is_from_rust(other.content)) == (True, False)
    assert len(answer(own)["usage"]) == 1
    assert answer(own) == answer(other)


def test_a_stream_has_no_usage_that_was_not_asked_for(replica: Replica) -> None:
    reply = replica.post("chat/completions", messages=QUESTION, stream=True, **GREEDY)
    assert is_from_rust(reply.content)
    assert answer(reply)["usage"] == []
    assert b"usage" not in reply.content


def test_an_answer_without_a_limit_has_that_of_the_service(replica: Replica) -> None:
    endless = {"messages": QUESTION, "ignore_eos": True, "temperature": 0} | USAGE
    reply = replica.post("chat/completions", stream=True, **endless)
    assert is_from_rust(reply.content)
    ((_, output, _),) = answer(reply)["usage"]
    assert output == rust_replica.MAX_TOKENS


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": QUESTION} | GREEDY,
        {"messages": QUESTION, "n": 2, "stream": True, "max_tokens": 8},
        {"messages": QUESTION, "logprobs": True, "stream": True} | GREEDY,
        {"messages": QUESTION, "response_format": {"type": "json_object"}, "stream": True} | GREEDY,
    ],
)
def test_other_requests_are_answered_too(replica: Replica, fields: dict[str, Any]) -> None:
    reply = replica.post("chat/completions", **fields)
    assert reply.status_code == 200
    assert not is_from_rust(reply.content)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -3},
        {"temperature": "078-05-1120"},
        {"prompt": "word " * rust_replica.MAX_MODEL_LEN},
        {"top_k": -7},
    ],
)
def test_its_errors_are_those_of_the_other(replica: Replica, fields: dict[str, Any]) -> None:
    fields = {"prompt": "A", "stream": True} | fields
    own = replica.post("completions", **fields)
    other = replica.post("completions", **fields | IN_PYTHON)
    assert own.status_code == other.status_code == 400
    assert own.json() == other.json()
    assert "078-05-1120" not in own.text


def test_charges_and_metrics_are_the_tokens_of_both_front_ends(replica: Replica) -> None:
    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")

    def counts() -> tuple[tuple[int, int], list[float]]:
        return replica.charged(), [replica.metric(name) for name in names]

    (before, metrics), since = counts(), time.monotonic()
    while time.monotonic() - since < 5:  # Metrics are read every second, or later.
        time.sleep(0.5)
        if (now := counts()) != (before, metrics):
            (before, metrics), since = now, time.monotonic()
    added = [0, 0]
    for options in (USAGE, IN_PYTHON):
        fields = {"messages": QUESTION, "stream": True} | GREEDY | options
        ((prompt, output, _),) = answer(replica.post("chat/completions", **fields))["usage"]
        added = [added[0] + prompt, added[1] + output]
    assert min(added) > 0
    wait_until(lambda: replica.charged() == (before[0] + added[0], before[1] + added[1]))
    expected = [old + new for old, new in zip(metrics, added, strict=True)]
    wait_until(lambda: [replica.metric(name) for name in names] == expected)


def test_the_autoscaler_sees_its_requests(replica: Replica) -> None:
    def are_seen() -> bool:
        figures = replica.figures()
        in_progress = figures["engine_running_requests"] == 1 and figures["kv_cache_usage"] > 0
        return in_progress and figures["ttft_p50_ms"] > 0

    deadline, seen = time.monotonic() + 60, False
    while not seen:  # A stream may end before a slow test has looked.
        assert time.monotonic() < deadline, "timed out"
        with replica.open_stream() as stream:
            lines = stream.iter_lines()  # httpx disconnects when it is deleted
            next(lines)
            looked = time.monotonic()
            while not (seen := are_seen()) and time.monotonic() - looked < 4:
                time.sleep(0.1)
    wait_until(lambda: replica.figures()["engine_running_requests"] == 0)


def test_a_client_that_disconnects_stops_the_engine_and_pays(replica: Replica) -> None:
    before = replica.charged()
    with replica.open_stream() as stream:
        lines = stream.iter_lines()
        first = next(lines)
        seen = 1 + sum(next(lines).startswith("data:") for _ in range(11))
    assert is_from_rust(first.encode())
    wait_until(lambda: replica.metric("vllm:num_requests_running") == 0)
    wait_until(lambda: replica.charged() > before)
    prompt, output = (new - old for new, old in zip(replica.charged(), before, strict=True))
    assert prompt > 0
    assert seen <= output < rust_replica.MAX_TOKENS


def test_the_last_event_has_the_metrics_that_stages_are_read_from(replica: Replica) -> None:
    fields = {"messages": QUESTION, "stream": True} | GREEDY
    own, other = (replica.post("chat/completions", **fields | o) for o in (USAGE, IN_PYTHON))
    assert is_from_rust(own.content)
    found, reference = (events(reply.content)[-1] for reply in (own, other))
    assert found["usage"]["completion_tokens"] == reference["usage"]["completion_tokens"]
    assert found["metrics"].keys() <= reference["metrics"].keys()
    assert min(found["metrics"].values()) > 0


def test_a_token_that_the_model_does_not_have_is_the_error_of_the_other(replica: Replica) -> None:
    """The engine would fail, and with it all requests."""
    fields = {"prompt": [5, 10**6], "stream": True}
    own, other = (replica.post("completions", **fields | o) for o in (USAGE, IN_PYTHON))
    assert own.text == other.text
    assert "Token id 1000000 is out of vocabulary" in own.text


def test_a_front_end_that_is_stopped_is_reported_by_the_health_check(replica: Replica) -> None:
    program = replica.child("vllm-rs")
    assert replica.client.get("/check").text == "healthy"
    program.suspend()
    try:
        assert replica.client.get("/check").text == "TimeoutError"
    finally:
        program.resume()
    assert replica.client.get("/check").text == "healthy"


def test_a_replica_that_serve_stops_leaves_no_front_end_and_no_sockets(tmp_path: Path) -> None:
    with running(tmp_path) as replica:
        program = replica.child("vllm-rs").pid
        assert list(tmp_path.glob("llm-*/rust-*"))
        replica.process.terminate()
        replica.process.wait(timeout=60)
        assert not is_running(program)
        assert not list(tmp_path.glob("llm-*/rust-*"))


@pytest.mark.parametrize("victim", ["vllm-rs", "VLLM::EngineCore"])
def test_a_replica_ends_with_its_front_end_and_with_its_engine(tmp_path: Path, victim: str) -> None:
    with running(tmp_path) as replica:
        children = descendants(replica.process.pid)
        process = replica.child(victim)
        with replica.open_stream() as stream:
            lines = stream.iter_lines()
            assert is_from_rust(next(lines).encode())
            process.kill()
            *_, last = [line for line in lines if line.startswith("data:")]
        assert json.loads(last.removeprefix("data:"))["error"]["code"] == "replica_ended"
        assert replica.process.wait(timeout=60) == 1
        wait_until(lambda: not any(map(is_running, children)))
