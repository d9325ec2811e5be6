"""Grammars are validated outside the replica's process, one at a time and within a time limit.

vLLM validates a grammar in the event loop that sends the tokens of all requests. A large one holds
it for seconds. Here a worker process does that work first, and compiles the grammar once; vLLM then
uses the result. It is started by the first request with a grammar.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable
from hashlib import sha256
from typing import NamedTuple

from serving.compat.vllm import GrammarCall, validation_error

TOO_COMPLEX = "The grammar is too complex:"
"""Start of the message for a grammar beyond the time limit."""
CPU_S = 5
"""Seconds of processor time for a grammar; real tool schemas need milliseconds."""
WALL_S = 60.0
"""Seconds after which a worker that does not answer is killed, however busy the machine is."""
START_S = 300.0
"""Seconds within which a worker must start."""
REMEMBERED = 1024
"""Grammars whose results are kept, so that an application's own schemas cost nothing again."""


class GrammarChecker:
    """Checks grammars in a worker process.

    Requests wait for the worker in turn. One whose client leaves gives up its place; a job that
    already runs ends by its time limit.

    Args:
        tokenizer_info: Returns xgrammar's description of the vocabulary as JSON, or None; called
            in a thread when the worker starts.
        cpu_s: Seconds of processor time for a grammar.
        wall_s: Seconds after which a worker that does not answer is killed.
    """

    def __init__(
        self,
        tokenizer_info: Callable[[], str | None],
        cpu_s: int = CPU_S,
        wall_s: float = WALL_S,
    ) -> None:
        self._tokenizer_info, self._cpu_s, self._wall_s = tokenizer_info, cpu_s, wall_s
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._jobs: set[asyncio.Task[None]] = set()
        self._results: dict[bytes, _Result] = {}

    def error(self, call: GrammarCall) -> str | None:
        """Return what xgrammar finds wrong with a grammar; None if nothing is.

        Raises:
            KeyError: The grammar was not checked.
        """
        return self._results[_digest(call)].error

    async def check(self, call: GrammarCall) -> None:
        """Check a grammar.

        Raises:
            Exception: vLLM's error for an invalid request: the grammar is too complex or cannot be
                compiled. One that only xgrammar cannot read is left to vLLM, which has other
                backends.
        """
        key = _digest(call)
        if key not in self._results:
            await self._turn.acquire()
            job = asyncio.create_task(self._run(key, call))
            self._jobs.add(job)
            job.add_done_callback(self._finish)
            await asyncio.shield(job)
        rejection = self._results[key].rejection
        if rejection is not None:
            raise validation_error(rejection)

    def _finish(self, job: asyncio.Task[None]) -> None:
        self._jobs.discard(job)
        self._turn.release()

    async def _run(self, key: bytes, call: GrammarCall) -> None:
        if key in self._results:
            return  # another request has checked the same grammar
        kind, text = call
        job = {"kind": kind, "text": text, "cpu_s": self._cpu_s}
        answer = await self._ask(job) or {"stage": "killed", "error": None}
        self._results[key] = self._result(answer)
        if len(self._results) > REMEMBERED:
            del self._results[next(iter(self._results))]

    def _result(self, answer: dict[str, str | None]) -> _Result:
        if answer["stage"] == "killed":
            return _Result(
                rejection=f"{TOO_COMPLEX} it could not be compiled within {self._cpu_s} s of "
                "processor time. Use fewer or shorter alternatives, enums and repetitions."
            )
        if answer["stage"] == "compile":
            return _Result(rejection=f"The grammar cannot be compiled: {answer['error']}")
        return _Result(error=answer["error"])

    async def _ask(self, job: dict[str, object]) -> dict[str, str | None] | None:
        """Return the worker's answer; None if it gives none, and it is killed then."""
        try:
            async with asyncio.timeout(START_S):
                process = self._process or await self._start()
            async with asyncio.timeout(self._wall_s):
                return await _exchange(process, job)
        except (TimeoutError, OSError, ValueError):
            await self.close()
            return None

    async def _start(self) -> asyncio.subprocess.Process:
        info = await asyncio.to_thread(self._tokenizer_info)
        paths = os.pathsep.join(path for path in sys.path if path)
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "serving.engine.grammar_worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""},
        )
        await _exchange(process, {"tokenizer": info})
        return process

    async def close(self) -> None:
        """Kill the worker; the next check starts another one."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _exchange(
    process: asyncio.subprocess.Process, message: dict[str, object]
) -> dict[str, str | None]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    await process.stdin.drain()
    answer: dict[str, str | None] = json.loads(await process.stdout.readline())
    return answer


class _Result(NamedTuple):
    """The result of a check: an error for vLLM to judge, or a reason to reject the request."""

    error: str | None = None
    rejection: str | None = None


def _digest(call: GrammarCall) -> bytes:
    return sha256("\0".join(call).encode("utf-8", "surrogatepass")).digest()
