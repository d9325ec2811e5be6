"""Ask the processes of this user that deployed services; see `workbench.endpoints.announce`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from workbench.endpoints.announce import MAX_LINE_BYTES
from workbench.errors import EndpointGoneError, WorkbenchError

LIST_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 90.0
MAX_ANSWER_BYTES = 16 * MAX_LINE_BYTES


async def services_of(folder: Path) -> list[dict[str, Any]]:
    """Return the services that the processes with a socket in the folder know, each once.

    A process that does not answer in time is left out. Each service has the further field
    ``process``, the id of a process that can stop it.
    """
    sockets = sorted(folder.glob("*.sock"))
    answers = await asyncio.gather(*(_list(socket) for socket in sockets))
    services: dict[tuple[str, str], dict[str, Any]] = {}
    for socket, answer in zip(sockets, answers, strict=True):
        for service in answer.get("services", []):
            key = (str(answer["cluster"]), service["name"])
            services.setdefault(key, service | {"process": socket.stem})
    return list(services.values())


async def stop_service(folder: Path, process: str, name: str) -> None:
    """Stop a service through the process that deployed it.

    Raises:
        EndpointGoneError: There is no such process.
        WorkbenchError: The process did not stop the service.
    """
    socket = folder / f"{process}.sock"
    try:
        answer = await _ask(socket, {"command": "stop", "name": name}, STOP_TIMEOUT_S)
    except (FileNotFoundError, ConnectionRefusedError):
        raise EndpointGoneError(
            f"{name}: process {process}, which deployed it, has ended"
        ) from None
    except TimeoutError:
        raise WorkbenchError(
            f"{name}: process {process} has not stopped it within {STOP_TIMEOUT_S:g} s"
        ) from None
    if "error" in answer:
        raise WorkbenchError(answer["error"])


async def _list(socket: Path) -> dict[str, Any]:
    try:
        return await _ask(socket, {"command": "list"}, LIST_TIMEOUT_S)
    except ConnectionRefusedError:
        socket.unlink(missing_ok=True)  # left over by a process that was killed
    except (OSError, TimeoutError, ValueError):
        pass
    return {}


async def _ask(socket: Path, question: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_unix_connection(str(socket), limit=MAX_ANSWER_BYTES)
        try:
            writer.write(json.dumps(question).encode() + b"\n")
            await writer.drain()
            answer: dict[str, Any] = json.loads(await reader.readline())
            return answer
        finally:
            writer.close()
