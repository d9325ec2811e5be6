"""Why an engine did not start, from what its processes logged."""

from __future__ import annotations

import os
import re
from pathlib import Path

from serving.errors import ENGINE_ERROR_MARK


def engine_errors(error: BaseException) -> str:
    """Return the error, after the exceptions that the engine's own processes logged.

    vLLM logs to standard output and prints tracebacks to standard error; Ray redirects both of
    this replica to files, which its engine processes share.
    """
    logged = [line for stream in (1, 2) for line in _exceptions(_tail(stream))]
    lines = dict.fromkeys([*logged, f"{type(error).__name__}: {error}"])
    return f"{ENGINE_ERROR_MARK}\n" + "\n".join(lines)


def _tail(descriptor: int, size: int = 65536) -> str:
    try:
        with Path(f"/proc/self/fd/{descriptor}").open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - size))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _exceptions(text: str) -> list[str]:
    """The lines of a log that name an exception, without process and logger prefixes."""
    prefix = re.compile(r"^(\([^)]*pid=\d+\)\s*)?(ERROR \S+ \S+ \[[^]]*\]\s)?")
    plain = [prefix.sub("", line).rstrip() for line in text.splitlines()]
    return [line for line in plain if re.match(r"[\w.]*(Error|Exception)\b", line)]
