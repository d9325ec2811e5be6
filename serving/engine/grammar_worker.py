"""The process that validates and compiles grammars, each in a child with limits of its own.

It is started as ``python -m serving.engine.grammar_worker`` and imports xgrammar only. Lines of
JSON go in and out: first ``{"tokenizer": ...}``, then for each job ``{"kind": ..., "text": ...,
"cpu_s": ...}``. The answer to each is ``{"error": ..., "stage": ...}``; ``stage`` is "done",
"parse", "compile" or "killed".
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from typing import IO, Any

MEMORY_BYTES = 4 * 2**30
"""Bytes of data that a child may have in addition to what it inherits."""
NICENESS = 10
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Answer jobs until the standard input ends."""
    _end_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not reach the answers
    import xgrammar

    tokenizer = json.loads(sys.stdin.readline() or "{}").get("tokenizer")
    info = xgrammar.TokenizerInfo.deserialize_json(tokenizer) if tokenizer else None
    os.nice(NICENESS)
    _answer(answers, {"error": None, "stage": "done"})
    for line in sys.stdin:
        _answer(answers, _run_in_child(json.loads(line), info))


def _answer(answers: IO[str], answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _run_in_child(job: dict[str, Any], info: Any) -> dict[str, Any]:
    """Run a job in a child, which the kernel ends after ``cpu_s`` seconds of processor time."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            _end_with_parent()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_CPU, (job["cpu_s"], job["cpu_s"]))
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
            os.write(writer, json.dumps(compile_grammar(job, info)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as result:
        text = result.read()
    os.waitpid(child, 0)
    answer: dict[str, Any] = json.loads(text) if text else {"error": None, "stage": "killed"}
    return answer


def compile_grammar(job: dict[str, Any], info: Any) -> dict[str, Any]:
    """Validate a grammar, and compile it where the vocabulary is known."""
    import xgrammar

    stage = "parse"
    try:
        grammar = _grammar(job["kind"], job["text"])
        stage = "compile"
        if info is not None:
            compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
            compiler.compile_grammar(grammar)
    except MemoryError:
        return {"error": None, "stage": "killed"}
    except Exception as error:
        return {"error": str(error)[:2000], "stage": stage}
    return {"error": None, "stage": "done"}


def _grammar(kind: str, text: str) -> Any:
    import xgrammar

    if kind == "from_structural_tag" and "structures" in (tag := json.loads(text)):
        items = [xgrammar.StructuralTagItem(**item) for item in tag["structures"]]
        return xgrammar.Grammar.from_structural_tag(items, tag["triggers"])
    return getattr(xgrammar.Grammar, kind)(text)


def _end_with_parent() -> None:
    """Let the kernel end this process with its parent, in whichever way that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:  # it has ended already
        os._exit(1)


if __name__ == "__main__":
    main()
