"""The first sampled tokens of an engine on a CPU, before its first request.

vLLM compiles its CPU sampler at the first request that samples, once for one sequence and once for
several. Torch keeps the machine code in a folder that all processes of a user share. An engine dies
if it reads a file there that another process is writing, or was writing when it was killed ("file
too short"). So the replicas of a model have their own folder, fill it one after the other, and
empty it if the one before did not finish.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from serving.compat.torch_vector_check import FOLDER_VARIABLE, VARIABLE, skip_vector_check

COMPLETE = "whole"
"""A file in the folder, written once a replica has filled it."""
TIMEOUT_S = 180.0
WARM_UP_TOKENS = 6
"""Tokens that `warm_up` samples: 2 for one sequence, then 2 for each of two."""
logger = logging.getLogger(__name__)


def choose_folder(model: str) -> None:
    """Set the folder of compiled code for this process and the engine processes it starts.

    The first call on a machine takes some 15 s, for torch's check of the CPU
    (:mod:`serving.compat.torch_vector_check`).
    """
    try:
        folder = _folder(Path.home() / ".cache" / "llm-workbench" / "compiled", model)
    except OSError:
        folder = _folder(Path(tempfile.mkdtemp(prefix="llm-workbench-compiled-")), model)
    os.environ[FOLDER_VARIABLE] = str(folder)


def _folder(root: Path, model: str) -> Path:
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    skip_vector_check(root)
    # Torch compiles again where the check is skipped.
    parts = model, version("torch"), os.environ.get(VARIABLE, "")
    folder = root / hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder


async def warm_up(client: Any) -> None:
    """Sample one sequence, then two at once, with vLLM's ``AsyncLLM``.

    A model for embeddings does not sample. If sampling fails, the first request will be slow. If
    the engine dies, an error is raised.
    """
    if "generate" not in await client.get_supported_tasks():
        return
    try:
        async with asyncio.timeout(TIMEOUT_S), _filling(Path(os.environ[FOLDER_VARIABLE])):
            for sequences in (1, 2):
                await _sample(client, sequences)
    except Exception:
        if client.errored:
            raise
        logger.warning("The engine could not be warmed up; its first request will be slow.")


async def _sample(client: Any, sequences: int) -> None:
    from vllm import SamplingParams

    sampling = SamplingParams(n=sequences, temperature=1.0, max_tokens=2, ignore_eos=True)
    prompt = {"prompt_token_ids": [1, 1]}
    async for _ in client.generate(prompt, sampling, f"warm-up-{sequences}"):
        pass


@asynccontextmanager
async def _filling(folder: Path) -> AsyncIterator[None]:
    """Hold an exclusive lock on the folder; the lock ends with the process in any case."""
    with folder.with_suffix(".lock").open("w") as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        if not (folder / COMPLETE).exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, mode=0o700)
        yield
        (folder / COMPLETE).touch()
