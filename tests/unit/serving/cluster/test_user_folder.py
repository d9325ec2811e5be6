"""Each user's folder and token: with real second users, and file systems that are really full."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from support.paths import ROOT
from support.users import OTHER, THIRD, as_user, mode, needs_root, with_mounts

from serving.cluster import user_folder
from serving.errors import ClusterError

# The longest names of sockets below the folder: Ray's, and HAProxy's in a folder with a node's id.
RAY_SOCKET = "ray/session_2026-11-27_22-54-24_723499_4194304/sockets/plasma_store_99"
HAPROXY_SOCKET = f"{'a' * 56}/metrics.sock"

START = """
import sys
from serving.cluster.local_head import start_head
from serving.errors import WorkbenchError
try:
    start_head(None)
except WorkbenchError as error:
    print(type(error).__name__, str(error))
print("ray" in sys.modules)
"""


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder like /tmp: everybody can write, and delete only what is theirs."""
    folder = Path("/tmp") / secrets.token_hex(2)  # short enough for sockets below it
    folder.mkdir()
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _own_parent(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(shared))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_the_folder_is_private(shared: Path) -> None:
    folder = user_folder.user_folder()
    assert folder.parent == shared
    assert mode(folder) == 0o700
    assert user_folder.user_folder() == folder


@pytest.mark.parametrize("uid", [0, 1000, 2**32 - 2])
def test_the_path_leaves_room_for_sockets(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setattr(os, "getuid", lambda: uid)
    monkeypatch.setattr(user_folder, "_private", lambda folder: folder)
    monkeypatch.setattr(user_folder, "_check_space", lambda folder: None)
    folder = user_folder.user_folder()
    assert str(folder).startswith("/tmp/llm-")
    assert len(f"{folder}/ab12cd/{HAPROXY_SOCKET}") <= 97
    assert len(f"{folder}/{RAY_SOCKET}") <= 107


def test_a_longer_path_is_enough_for_ray(monkeypatch: pytest.MonkeyPatch, shared: Path) -> None:
    longer = shared / ("x" * (31 - len(str(shared)) - len(f"/llm-{os.getuid()}")))
    longer.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(longer))
    monkeypatch.setenv("TMPDIR", str(shared))
    folder = user_folder.user_folder(user_folder.RAY_SOCKET)
    assert folder.parent == longer
    path = folder / RAY_SOCKET
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    assert user_folder.user_folder().parent == shared


def test_each_cluster_has_a_private_folder_of_its_own() -> None:
    first, second = user_folder.cluster_folder(), user_folder.cluster_folder()
    assert first != second
    assert {first.parent, second.parent} == {user_folder.user_folder()}
    assert mode(first) == mode(second) == 0o700


def test_a_long_path_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: Path
) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    monkeypatch.setenv("TMPDIR", str(shared))
    assert user_folder.user_folder().parent == shared
    assert list(long.iterdir()) == []


def test_a_folder_that_others_can_read_becomes_private() -> None:
    folder = user_folder.user_folder()
    folder.chmod(0o755)
    assert mode(user_folder.user_folder()) == 0o700


def is_listed(folder: Path) -> bool:
    try:
        return os.listdir(folder) is not None
    except PermissionError:
        return False


@needs_root
def test_two_users_have_folders_that_the_other_cannot_read(shared: Path) -> None:
    first = as_user(OTHER, user_folder.user_folder)
    second = as_user(THIRD, user_folder.user_folder)
    assert first != second
    for folder, owner, stranger in ((first, OTHER, THIRD), (second, THIRD, OTHER)):
        assert (folder.stat().st_uid, mode(folder)) == (owner, 0o700)
        # HAProxy's administration socket, which its own mode does not protect.
        admin = folder / "admin.sock"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(admin))
            admin.chmod(0o777)
            server.listen()
            assert as_user(owner, partial(connects, admin))
            assert not as_user(stranger, partial(connects, admin))
        assert not as_user(stranger, partial(is_listed, folder))


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@needs_root
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_name_that_another_user_took_is_not_used(shared: Path, kind: str) -> None:
    own = as_user(OTHER, user_folder.user_folder)
    own.rmdir()

    def take() -> None:
        elsewhere = shared / "elsewhere"
        elsewhere.mkdir(mode=0o777)
        own.symlink_to(elsewhere) if kind == "link" else own.mkdir(mode=0o777)

    as_user(THIRD, take)
    folder = as_user(OTHER, user_folder.user_folder)
    assert folder != own
    assert folder.parent == shared
    assert len(str(folder)) <= user_folder.HAPROXY_SOCKET
    assert (folder.stat().st_uid, mode(folder)) == (OTHER, 0o700)
    assert stat.S_ISDIR(folder.lstat().st_mode)


@needs_root
@pytest.mark.parametrize("home", [None, "/nonexistent", "locked"])
def test_without_a_home_the_token_and_caches_are_in_the_folder(
    shared: Path, home: str | None
) -> None:
    if home == "locked":
        locked = shared / "locked"
        (locked / ".cache" / "huggingface").mkdir(parents=True)
        os.chown(locked, OTHER, OTHER)
        locked.chmod(0o555)
        home = str(locked)
    nobody = dict.fromkeys(("LOGNAME", "USER", "LNAME", "USERNAME", "HF_HOME"))

    def prepare() -> tuple[Path, dict[str, str]]:
        token = user_folder.create_token()
        assert user_folder.create_token() == token
        return token, user_folder.home_environment(user_folder.user_folder())

    token, variables = as_user(OTHER, prepare, HOME=home, **nobody)
    folder = shared / f"llm-{OTHER}"
    assert token == folder / "auth_token"
    assert mode(token) == 0o600
    assert len(token.read_text()) == 64
    assert variables["RAY_AUTH_TOKEN_PATH"] == str(token)
    assert variables["HOME"] == str(folder / "home")
    assert variables["USER"] == str(OTHER)
    assert mode(folder / "home") == 0o700
    # The models of a home that can only be read are still found.
    hub = str(shared / "locked" / ".cache" / "huggingface")
    assert variables.get("HF_HOME") == (hub if home == str(shared / "locked") else None)


def test_with_a_home_the_token_is_where_ray_looks(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(shared))
    monkeypatch.setenv("USER", "ada")
    assert user_folder.token_file() is None
    token = user_folder.create_token()
    assert token == shared / ".ray" / "auth_token"
    assert mode(token) == 0o600
    content = token.read_text()
    assert user_folder.create_token().read_text() == content
    assert [file.name for file in token.parent.iterdir()] == ["auth_token"]
    assert user_folder.home_environment(user_folder.user_folder()) == {}


def test_a_folder_that_cannot_be_made_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, shared: Path
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ClusterError) as caught:
        user_folder.user_folder()
    message = str(caught.value)
    assert f"{shared} (No space left on device), /tmp (No space left on device)" in message
    assert "32 MiB" in message
    assert "RAY_TMPDIR" in message


@needs_root
@pytest.mark.skipif(
    Path(sys.executable).is_relative_to("/tmp") or ROOT.is_relative_to("/tmp"),
    reason="the checkout is in /tmp, over which the test mounts",
)
@pytest.mark.parametrize(
    ("options", "reason"), [("size=2m", "No space left on device"), ("ro", "Read-only file system")]
)
def test_a_full_or_read_only_disk_is_named_before_ray_starts(options: str, reason: str) -> None:
    mounts = f"mount -t tmpfs -o {options} tmpfs /tmp"
    ran = with_mounts(mounts, START, RAY_TMPDIR="/tmp")
    error, imported = ran.stdout.splitlines()
    assert error.startswith("ClusterError Ray needs a folder")
    assert f"/tmp ({reason})" in error
    assert imported == "False"
    assert ran.stderr == ""
