"""JupyterHub for a class on one Ray cluster: each user gets the lease with the user's name.

A server that the hub starts has the lease in its environment, so that in a notebook

    seat = wb.classroom.join()

joins the class. Set these variables for the hub:

- WORKBENCH_CLASS_KEYS: the file of keys that notebook 10 writes (its parameter keys_file).
- RAY_ADDRESS: the address of the Ray cluster on which the class is open. If the cluster requires a
  token, also set RAY_AUTH_TOKEN: Ray looks for it in a user's home, and the users have homes of
  their own.

Users without a lease cannot log in. The authenticator and the spawner are those of
JupyterHub's defaults; to replace them, load this file from a configuration of your own:

    load_subconfig("deploy/jupyterhub_config.py")
    c.JupyterHub.authenticator_class = ...
"""

import os
import stat
import sys
from pathlib import Path
from typing import Any

KEYS_VARIABLE, ADDRESS_VARIABLE = "WORKBENCH_CLASS_KEYS", "RAY_ADDRESS"
TOKEN_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


class LeaseMissingError(Exception):
    """A user has no lease. JupyterHub shows the user the message."""

    def __init__(self, name: str) -> None:
        self.jupyterhub_message = f"{name!r} has no lease in this class; ask the instructor."
        super().__init__(self.jupyterhub_message)


def variable(name: str) -> str:
    """Return an environment variable of the hub, or exit with a message."""
    value = os.environ.get(name)
    if not value:
        sys.exit(f"{name} is not set: see the beginning of {__file__}")
    return value


def read_keys(path: Path) -> dict[str, str]:
    """Return the key of each user, from lines with a name and a key.

    Raises:
        ValueError: A line is something else.
    """
    keys = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match line.split():
            case [name, key]:
                keys[name] = key
            case [_, *_]:
                raise ValueError(f"{path}, line {number}: must be a name and a key (notebook 10)")
    return keys


def check_mode(path: Path) -> None:
    """Exit if the file of keys is missing, or if other users of the machine can read it."""
    if not path.is_file():
        sys.exit(f"{KEYS_VARIABLE} is {path}, which does not exist: write it with notebook 10")
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        sys.exit(f"other users can read the keys in {path}: chmod 600 {path}")


def give_lease(spawner: Any) -> None:
    """Put the user's lease into the environment of the user's server.

    The file is read again each time: the keys of the next class need no restart of the hub.

    Raises:
        LeaseMissingError: The user does not have a lease.
    """
    name = spawner.user.name
    key = read_keys(keys_file).get(name)
    if key is None:
        raise LeaseMissingError(name)
    lease = {"LLM_WORKBENCH_TENANT": name, "LLM_WORKBENCH_TENANT_KEY": key}
    spawner.environment = {**spawner.environment, **lease}


keys_file = Path(variable(KEYS_VARIABLE)).resolve()
check_mode(keys_file)
c = get_config()  # type: ignore[name-defined]  # noqa: F821
c.Authenticator.allowed_users = set(read_keys(keys_file))
c.Spawner.environment = {
    ADDRESS_VARIABLE: variable(ADDRESS_VARIABLE),
    **{name: os.environ[name] for name in TOKEN_VARIABLES if name in os.environ},
}
c.Spawner.pre_spawn_hook = give_lease
c.Spawner.default_url = "/lab"
