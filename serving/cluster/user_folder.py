"""A folder of this user for everything that a local cluster writes, and Ray's token.

Ray's default folder belongs to the first user who starts Ray on a machine, and others cannot write
there. The sockets in it, such as HAProxy's administration socket, do not restrict access
themselves, so the folder does.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from serving.errors import ClusterError

HAPROXY_SOCKET = 97 - len("/ab12cd/") - 56 - len("/metrics.sock")
"""Bytes of the folder's path so that HAProxy's sockets fit: they are in a cluster's folder, in one
with the id of the node, and HAProxy allows 97 bytes."""
RAY_SOCKET = 107 - len("/ray/session_2026-11-27_22-54-24_723499_4194304/sockets/plasma_store_99")
"""Bytes of the folder's path so that Ray's sockets fit."""
REQUIRED_BYTES = 32 * 2**20
"""Free space without which Ray does not start."""


_substitutes: dict[Path, Path] = {}
"""Folders of this process instead of those whose names other users took."""


def user_folder(max_bytes: int = HAPROXY_SOCKET) -> Path:
    """Return this user's folder, which no other user can read, and create it if necessary.

    Its parent is ``RAY_TMPDIR``, ``TMPDIR`` or ``/tmp``: the first in which the folder's path is
    short enough for sockets and the folder can be written.

    Args:
        max_bytes: The length that its path may have.

    Raises:
        ClusterError: There is no such place, for example because the disk is full.
    """
    parents = dict.fromkeys([os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR"), "/tmp"])
    problems = []
    for parent in filter(None, parents):
        folder = Path(parent) / f"llm-{os.getuid()}"
        if len(os.fsencode(folder)) > max_bytes:
            problems.append(f"{parent} (the path is too long for sockets)")
            continue
        try:
            folder = _private(folder)
            _check_space(folder)
        except OSError as error:
            problems.append(f"{parent} ({error.strerror})")
        else:
            return folder
    raise ClusterError(
        f"Ray needs a folder with {REQUIRED_BYTES // 2**20} MiB of free space, and there is none "
        f"in {', '.join(problems)}. Free space there, or set RAY_TMPDIR to another folder with a "
        "short path."
    )


def cluster_folder() -> Path:
    """Create a folder for one cluster in this user's folder.

    Raises:
        ClusterError: It cannot be created.
    """
    folder = user_folder() / secrets.token_hex(3)
    folder.mkdir(mode=0o700)
    return folder


def _private(folder: Path) -> Path:
    """Create the folder with mode 0700; return one beside it if another user took its name.

    Raises:
        OSError: The folder cannot be created.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        if folder not in _substitutes:
            _substitutes[folder] = folder.with_name(secrets.token_hex(2))
            _substitutes[folder].mkdir(mode=0o700)
        return _substitutes[folder]
    if stat.S_IMODE(status.st_mode) != 0o700:
        folder.chmod(0o700)
    return folder


def _check_space(folder: Path) -> None:
    """Reserve the space for a moment, which also finds a quota and a read-only file system."""
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, REQUIRED_BYTES)


def home() -> Path | None:
    """Return this user's home, or None if it does not exist or is read-only."""
    try:
        folder = Path.home()
    except RuntimeError:
        return None
    return folder if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK) else None


def home_environment(folder: Path) -> dict[str, str]:
    """Return the variables that replace a home that cannot be written; none for another home.

    The models that such a home holds are still found.

    Args:
        folder: This user's folder.
    """
    variables = {}
    if not any(os.environ.get(name) for name in ("LOGNAME", "USER")):
        variables["USER"] = user_name()
    if home() is not None:
        return variables
    if (file := token_file()) is not None and not names_token(os.environ):
        variables["RAY_AUTH_TOKEN_PATH"] = str(file)
    substitute = folder / "home"
    substitute.mkdir(mode=0o700, exist_ok=True)
    variables["HOME"] = str(substitute)
    with contextlib.suppress(RuntimeError):
        hub = Path.home() / ".cache" / "huggingface"
        if hub.is_dir() and "HF_HOME" not in os.environ:
            variables["HF_HOME"] = str(hub)
    return variables


def user_name() -> str:
    """Return the name of this process's user, or the id of a user without a name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def names_token(environment: Mapping[str, str]) -> bool:
    """Return whether these variables have a token for Ray, or the path of one."""
    return any(environment.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))


def token_file() -> Path | None:
    """Return the file with this user's token for Ray, or None if there is none."""
    return next((file for file in _token_files() if file.is_file()), None)


def create_token() -> Path:
    """Return the file with this user's token for Ray, and create it if there is none.

    It is in Ray's own place in the home; where that cannot be written, in this user's folder.

    Raises:
        ClusterError: Neither can be written.
    """
    if (existing := token_file()) is not None:
        return existing
    problem = "no home"
    for file in _token_files():
        try:
            _write_token(file)
        except OSError as error:
            problem = f"{file}: {error.strerror}"
        else:
            return file
    raise ClusterError(
        f"the token for Ray cannot be written ({problem}). Set RAY_AUTH_TOKEN to a random text of "
        "64 characters, or make the folder writable."
    )


def _token_files() -> Iterator[Path]:
    with contextlib.suppress(RuntimeError):
        yield Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(ClusterError):
        yield user_folder() / "auth_token"


def _write_token(file: Path) -> None:
    """Write a new token, complete and private from the start.

    If another process writes one first, that one is kept.
    """
    file.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):
            os.link(draft, file)
    finally:
        os.unlink(draft)
