"""A scripted process with services, as JupyterLab's extension asks it."""

from __future__ import annotations

import json
import socketserver
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class ServicesProcess:
    """Answers on a socket like a notebook that deployed these services."""

    def __init__(
        self, socket: Path, services: list[str], cluster: str = "192.0.2.1:6379", **fields: Any
    ) -> None:
        self.services, self.cluster, self.fields = list(services), cluster, fields
        process = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                answer = process.answer(json.loads(self.rfile.readline()))
                self.wfile.write(json.dumps(answer).encode() + b"\n")

        self._socket = socket
        self._server = socketserver.ThreadingUnixStreamServer(str(socket), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Answer a question as `workbench.endpoints.announce` documents it."""
        if question["command"] == "stop":
            if question["name"] not in self.services:
                return {"error": f"no service {question['name']}"}
            self.services.remove(question["name"])
            return {}
        return {"cluster": self.cluster, "services": [self._summary(n) for n in self.services]}

    def _summary(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "models": "tiny-llama-glossary",
            "state": "running",
            "replicas": 2,
            "owner": "ada@hub",
            "uptime_s": 725.0,
            "idle_s": 3.0,
            "lease_left_s": None,
            "stops_in_s": None,
            "dollars_per_hour": None,
        } | self.fields

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._socket.unlink(missing_ok=True)
