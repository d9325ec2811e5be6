"""The worker that compiles grammars. Ground truth: /proc, and the clock of the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.compat import vllm as compat_vllm
from serving.engine.grammars import GrammarChecker
from serving.models.embedded import tiny_model_path

ENDLESS = ("from_json_schema", json.dumps({"enum": [f"value number {n}" for n in range(60_000)]}))
"""Takes half a minute of a processor."""


def vocabulary() -> str:
    import xgrammar
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path())
    text: str = xgrammar.TokenizerInfo.from_huggingface(tokenizer).serialize_json()
    return text


def worker_processes() -> set[int]:
    """The workers of this process and their children, according to the kernel."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, _, rest = status.read_text().partition(" ")
            parents[int(pid)] = int(rest.rpartition(")")[2].split()[1])
    named = {pid for pid, parent in parents.items() if parent == os.getpid() and is_worker(pid)}
    return named | {pid for pid, parent in parents.items() if parent in named}


def is_worker(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"serving.engine.grammar_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def schema(**fields: Any) -> tuple[str, str]:
    return "from_json_schema", json.dumps(fields)


async def rejection(checker: GrammarChecker, call: tuple[str, str]) -> str:
    with pytest.raises(type(compat_vllm.validation_error("")), match="grammar") as caught:
        await checker.check(call)
    return str(caught.value)


async def largest_delay(stop: asyncio.Event) -> float:
    """The longest time in seconds that the event loop was late."""
    late = 0.0
    while not stop.is_set():
        began = time.perf_counter()
        await asyncio.sleep(0.01)
        late = max(late, time.perf_counter() - began - 0.01)
    return late


@pytest.mark.slow
def test_grammars_are_checked_in_a_process_that_can_be_killed() -> None:
    async def run() -> None:
        checker = GrammarChecker(vocabulary, cpu_s=8)
        assert not worker_processes(), "it starts with the first grammar"
        with pytest.raises(KeyError):
            checker.error(schema(type="object"))
        try:
            await checker.check(schema(type="object"))
            assert checker.error(schema(type="object")) is None
            (worker,) = worker_processes()

            broken = ("from_ebnf", "root ::= [")
            await checker.check(broken)  # vLLM judges what xgrammar cannot read
            assert "EBNF" in str(checker.error(broken))

            stop = asyncio.Event()
            delay = asyncio.create_task(largest_delay(stop))
            running = asyncio.create_task(rejection(checker, ENDLESS))
            await asyncio.sleep(0.2)
            queued = asyncio.create_task(checker.check(schema(title="left")))
            valid = asyncio.create_task(checker.check(schema(title="valid")))
            await asyncio.sleep(0)
            queued.cancel()
            assert "too complex" in await running
            await valid
            stop.set()
            # The machine may pause this process for some seconds; the check takes eight or more.
            assert await delay < 7, "another request's tokens waited"
            with pytest.raises(KeyError):
                checker.error(schema(title="left"))
            assert worker_processes() == {worker}, "the same worker, and no job left in it"

            began = time.perf_counter()
            assert "too complex" in await rejection(checker, ENDLESS)
            await checker.check(schema(title="valid"))
            assert time.perf_counter() - began < 7, "results are kept"

            os.kill(worker, signal.SIGKILL)  # a crash
            assert "too complex" in await rejection(checker, schema(title="crash"))
            await checker.check(schema(title="after"))
            assert worker_processes() not in (set(), {worker})
        finally:
            await checker.close()
        assert not worker_processes()

    asyncio.run(run())


def test_vllm_validates_with_the_result_of_the_worker() -> None:
    """VLLM's own validation in the event loop calls xgrammar for no grammar that was checked."""
    from vllm.exceptions import VLLMValidationError
    from vllm.sampling_params import StructuredOutputsParams
    from vllm.v1.structured_output import backend_xgrammar

    checked: list[tuple[str, str]] = []
    added: list[str] = []

    async def check(call: tuple[str, str]) -> None:
        checked.append(call)

    def error(call: tuple[str, str]) -> str | None:
        return {"bad": "the worker's error"}.get(json.loads(call[1]).get("title"))

    class Client:
        async def add_request(self, request_id: str, prompt: Any, params: Any) -> None:
            backend_xgrammar.validate_xgrammar_grammar(params)
            added.append(request_id)

    real = backend_xgrammar.xgr
    client: Any = Client()
    try:
        compat_vllm.check_grammars_elsewhere(client, error, check)

        async def add(request_id: str, **constraint: Any) -> None:
            outputs = StructuredOutputsParams(**constraint) if constraint else None
            params = SimpleNamespace(structured_outputs=outputs)
            await client.add_request(request_id, "prompt", params)

        asyncio.run(add("none"))
        assert checked == []
        asyncio.run(add("good", json={"title": "good", "type": "nonsense"}))
        assert checked == [("from_json_schema", '{"title": "good", "type": "nonsense"}')]
        with pytest.raises(VLLMValidationError, match="the worker's error"):
            asyncio.run(add("bad", json={"title": "bad"}))
        assert added == ["none", "good"]
    finally:
        backend_xgrammar.xgr = real


def test_tokens_are_counted_and_aborted_by_the_engines_own_states() -> None:
    class Processor:
        def __init__(self) -> None:
            self.request_states: dict[str, Any] = {}

        def add_request(self, request: Any, prompt: str | None, parent: Any = None) -> None:
            stats = SimpleNamespace(num_generation_tokens=0)
            fields = {"request_id": request.request_id, "prompt_len": 11, "stats": stats}
            self.request_states[request.request_id] = SimpleNamespace(parent_req=parent, **fields)

    aborted = []

    async def abort(request_id: str, internal: bool) -> None:
        assert internal
        aborted.append(request_id)

    client = SimpleNamespace(output_processor=Processor(), abort=abort)
    compat_vllm.count_generated_tokens(client)
    parent = object()

    def add(request_id: str, of: Any = None) -> Any:
        client.output_processor.add_request(SimpleNamespace(request_id=request_id), None, of)
        return client.output_processor.request_states.pop(request_id)

    add("outside of any HTTP request")
    tokens = compat_vllm.GeneratedTokens()
    token = compat_vllm.generated_tokens.set(tokens)
    try:
        states = [add("1"), add("2", parent), add("3", parent)]
    finally:
        compat_vllm.generated_tokens.reset(token)
    assert tokens.count() == (22, 0), "several answers share one prompt"
    for number, state in enumerate(states):
        state.stats.num_generation_tokens = 10 + number
    assert tokens.count() == (22, 33)

    async def leave() -> None:
        tokens.abort()
        await asyncio.sleep(0)
        compat_vllm.generated_tokens.set(tokens)
        add("4")
        await asyncio.sleep(0)

    asyncio.run(leave())
    assert aborted == ["1", "2", "3", "4"], "also the one that the engine gets later"
