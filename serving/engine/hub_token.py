"""A replica's token for the hub, which is in no environment variable of the replica."""

from __future__ import annotations

import os
from pathlib import Path

PATH_VARIABLE = "HF_TOKEN_PATH"
"""The variable with the path from which the hub's library reads the token."""


def hide_hub_token() -> None:
    """Keep a hub token in memory: Ray copies ``HF_TOKEN`` into readable task records.

    The hub's library reads the token from a path. This one is a file of this process without a
    name on disk. Its engine processes can open it while this process lives.
    """
    token = os.environ.pop("HF_TOKEN", None) or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    os.environ.pop("HUGGING_FACE_HUB_TOKEN", None)
    if token:
        descriptor = os.memfd_create("hub-token")
        os.write(descriptor, token.encode())
        path = f"/proc/{os.getpid()}/fd/{descriptor}"
        os.environ[PATH_VARIABLE] = path
        import huggingface_hub.constants as constants

        constants.HF_TOKEN_PATH = path


def hub_token() -> str | None:
    """Return the token for a program that reads it from ``HF_TOKEN`` only; None without one."""
    path = Path(os.environ.get(PATH_VARIABLE, ""))
    return path.read_text().strip() if path.is_file() else None
