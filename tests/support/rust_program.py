"""A program with the command line of vLLM's Rust front end, for tests of what starts it.

It answers every HTTP request on the socket that it inherits with its own arguments, as JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path

SERVE = """
import json, socket, sys
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
body = json.dumps(sys.argv[1:]).encode()
listener = socket.socket(fileno=int(options["--listen-fd"]))
while True:
    client, _ = listener.accept()
    client.recv(65536)
    client.sendall(b"HTTP/1.1 200 OK\\r\\nconnection: close\\r\\ncontent-length: %d\\r\\n\\r\\n%b"
                   % (len(body), body))
    client.close()
"""
END = "import sys; sys.exit(3)"


def write_program(folder: Path, version: str = "0.29.0", run: str = SERVE) -> Path:
    """Write an executable `vllm-rs` that reports `version`, and otherwise runs Python code."""
    code = folder / "program.py"
    code.write_text(run)
    program = folder / "vllm-rs"
    program.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo "vllm-rs {version}"; exit; fi\n'
        f'exec {sys.executable} -S {code} "$@"\n'
    )
    program.chmod(0o755)
    return program
