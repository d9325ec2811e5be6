"""The replica: Ray Serve LLM's own server, behind our gate.

The application names these classes by import path, so that only replicas import vLLM.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ray import serve
from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.serve.llm.deployment import LLMServer

from serving.auth import Access, App, Gate
from serving.engine import llm_config
from serving.errors import LAST_WORDS
from serving.spec import ModelSpec


class NoNodeInit(CallbackBase):  # type: ignore[misc]
    """Skip Ray's download task: vLLM loads from a path or the hub by itself.

    The task takes a process that imports vLLM (ten seconds of a core), and Ray records its
    environment, a hub token included.
    """

    async def on_before_node_init(self) -> None:
        self.ctx.run_init_node = False


class EngineReplica(LLMServer):  # type: ignore[misc]
    """One vLLM engine, reached through a deployment handle (the composed path)."""

    async def __init__(self, model: dict[str, Any]) -> None:  # type: ignore[misc]
        hide_hub_token()
        try:
            await super().__init__(llm_config(ModelSpec(**model)))
        except Exception as error:
            raise RuntimeError(last_words(error)) from None

    async def _start_engine(self) -> None:
        # Ray's own version also starts an actor that reports usage, which this project leaves off.
        await self.engine.start()


@serve.ingress()
class DirectReplica(EngineReplica):
    """The same engine with vLLM's own OpenAI server in front, behind our gate."""

    async def __init__(self, model: dict[str, Any]) -> None:  # type: ignore[misc]
        self._access: Access | None = None
        await super().__init__(model)

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new keys and limits without a restart."""
        self._access = Access(**user_config["access"])

    async def __serve_build_asgi_app__(self) -> App:
        return Gate(await super().__serve_build_asgi_app__(), lambda: self._required_access())

    def _required_access(self) -> Access:
        assert self._access is not None, "Serve calls reconfigure before the first request"
        return self._access


def hide_hub_token() -> None:
    """Keep a hub token in memory: Ray copies ``HF_TOKEN`` into readable task records.

    The hub's library reads a token from a path; this one is a file of this process that has no
    name on disk, which its engine processes can open while it lives and which ends with it.
    """
    token = os.environ.pop("HF_TOKEN", None) or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    os.environ.pop("HUGGING_FACE_HUB_TOKEN", None)
    if token:
        descriptor = os.memfd_create("hub-token")
        os.write(descriptor, token.encode())
        path = f"/proc/{os.getpid()}/fd/{descriptor}"
        os.environ["HF_TOKEN_PATH"] = path
        import huggingface_hub.constants as constants

        constants.HF_TOKEN_PATH = path


def last_words(error: BaseException) -> str:
    """The error, and what the engine's own processes said went wrong before they ended.

    vLLM logs to standard output and prints tracebacks to standard error; Ray sends this replica's
    to files, which its engine processes share.
    """
    said = [line for stream in (1, 2) for line in _exceptions(_tail(stream))]
    words = dict.fromkeys([*said, f"{type(error).__name__}: {error}"])
    return f"{LAST_WORDS}\n" + "\n".join(words)


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
