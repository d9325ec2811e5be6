"""deploy/jupyterhub_config.py gives each hub user the lease of the same name."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.paths import ROOT
from traitlets.config import Config

from workbench.classroom import join
from workbench.errors import SettingError

CONFIG = ROOT / "deploy" / "jupyterhub_config.py"


@pytest.fixture
def keys_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of keys of a class, as notebook 10 writes it."""
    file = tmp_path / "keys.txt"
    file.write_text("ada sk-of-ada\nbob sk-of-bob\n")
    file.chmod(0o600)
    monkeypatch.setenv("WORKBENCH_CLASS_KEYS", str(file))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the token of the cluster")
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return file


def load() -> Any:
    """Return what the file configures."""
    config = Config()
    runpy.run_path(str(CONFIG), init_globals={"get_config": lambda: config})
    return config


def server_of(user: str, config: Any) -> Any:
    """Return a server before its start, with the settings of the configuration."""
    return SimpleNamespace(user=SimpleNamespace(name=user), environment=config.Spawner.environment)


def test_each_server_has_the_lease_of_its_user_alone(keys_file: Path) -> None:
    config = load()
    servers = {user: server_of(user, config) for user in ("ada", "bob")}
    for server in servers.values():
        config.Spawner.pre_spawn_hook(server)
    for user, server in servers.items():
        assert server.environment == {
            "RAY_ADDRESS": "10.0.0.1:6379",
            "RAY_AUTH_TOKEN": "the token of the cluster",
            "LLM_WORKBENCH_TENANT": user,
            # Not LLM_WORKBENCH_API_KEY: an owner and a tenant must not have the same key.
            "LLM_WORKBENCH_TENANT_KEY": f"sk-of-{user}",
        }
    assert config.Authenticator.allowed_users == {"ada", "bob"}


def test_the_keys_of_the_next_class_need_no_restart(keys_file: Path) -> None:
    config = load()
    keys_file.write_text("ada sk-of-the-next-class\n")
    server = server_of("ada", config)
    config.Spawner.pre_spawn_hook(server)
    assert server.environment["LLM_WORKBENCH_TENANT_KEY"] == "sk-of-the-next-class"
    with pytest.raises(Exception, match="'bob' has no lease") as raised:
        config.Spawner.pre_spawn_hook(server_of("bob", config))
    shown = vars(raised.value)["jupyterhub_message"]  # JupyterHub shows this attribute
    assert shown == str(raised.value)


@pytest.mark.parametrize("name", ["WORKBENCH_CLASS_KEYS", "RAY_ADDRESS"])
def test_a_missing_variable_is_named(
    keys_file: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(name)
    with pytest.raises(SystemExit, match=f"{name} is not set"):
        load()


def test_a_file_that_others_can_read_is_rejected(keys_file: Path) -> None:
    keys_file.chmod(0o640)
    with pytest.raises(SystemExit, match=f"chmod 600 {keys_file}"):
        load()
    keys_file.unlink()
    with pytest.raises(SystemExit, match="does not exist"):
        load()


def test_a_wrong_line_is_named_without_its_key(keys_file: Path) -> None:
    keys_file.write_text("ada sk-of-ada\n\nbob, sk-of-bob too much\n")
    with pytest.raises(ValueError, match="line 3: must be a name and a key") as raised:
        load()
    assert "sk-of" not in str(raised.value)


def test_join_without_a_lease_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM_WORKBENCH_TENANT", raising=False)
    monkeypatch.setenv("LLM_WORKBENCH_TENANT_KEY", "sk-of-ada")
    with pytest.raises(SettingError, match="set LLM_WORKBENCH_TENANT and LLM_WORKBENCH_TENANT_KEY"):
        join()
