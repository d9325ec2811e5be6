"""``deploy(spec)``: from a specification to an endpoint that answers the OpenAI client."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import TYPE_CHECKING

from pydantic import SecretStr

from serving import app, auth, cluster, engine, service
from serving.errors import EndpointGoneError
from serving.spec import ServiceSpec
from workbench.remote import Remote

if TYPE_CHECKING:
    from serving.service import Progress, ServiceStatus

_keys: dict[tuple[str, str], SecretStr] = {}
"""Keys of what this process deployed, by cluster address and application name."""


class Endpoint(Remote):
    """A running service: where it answers, clients ready to use, and its end.

    Also a context manager that deletes the service when left. The key is a ``SecretStr``, so no
    output shows it by accident.
    """

    def __init__(
        self, spec: ServiceSpec, where: cluster.Cluster, port: int, api_key: SecretStr
    ) -> None:
        host = "127.0.0.1" if spec.host in ("0.0.0.0", "::") else spec.host
        self.spec = spec
        host = f"[{host}]" if ":" in host else host
        base_url = f"http://{host}:{port}{spec.route_prefix.rstrip('/')}/v1"
        super().__init__(base_url, api_key, [spec.model.model_id], spec.model.path)
        self._cluster = where

    @property
    def deployment(self) -> str:
        """The model's deployment, as telemetry names it."""
        return app.deployment_name(self.spec.model)

    def status(self) -> ServiceStatus:
        """Each deployment's replicas, by Serve's own account.

        Raises:
            EndpointGoneError: the service was deleted, or its cluster is gone.
        """
        if cluster.current() is not self._cluster:
            raise EndpointGoneError(f"{self.spec.name}: its cluster is gone. Deploy it again.")
        return service.status(self.spec.name)

    def delete(self) -> None:
        """Delete the service; where this project started the cluster, end that with it."""
        _keys.pop((self._cluster.address, self.spec.name), None)
        if cluster.current() is self._cluster:
            service.delete(self.spec.name, self._cluster)

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.delete()


def deploy(
    spec: ServiceSpec | None = None,
    *,
    api_key: str | None = None,
    address: str | None = None,
    progress: Progress | None = None,
) -> Endpoint:
    """Bring up ``spec`` and return its endpoint once it answers.

    ``api_key``, or the variable ``LLM_WORKBENCH_API_KEY``, is the key that callers must send; a
    random one is made where neither is given. ``address`` (or ``RAY_ADDRESS``) names a Ray cluster
    to attach to; without it one is started here, and ends with this process. ``progress`` is told
    what is waited for; by default it prints. Whatever goes wrong, nothing half-started stays.

    Raises:
        SpecError, ResourcesError, MissingPackageError, PortTakenError, ClusterError: refused
            before anything starts; the message names the field, the value and the way out.
        DeployError: a replica did not start; the message has the engine's last words.
    """
    spec = spec or ServiceSpec()
    say = _timed(progress or _print)
    engine.check(spec.model)
    given = api_key or os.environ.get(auth.KEY_VARIABLE)
    if given:
        auth.key_hash(given)
    if cluster.current() is None:
        say(cluster.announce(spec, address))
    where = cluster.connect(spec, address)
    known = _keys.get((where.address, spec.name))
    key = SecretStr(given) if given else known or SecretStr(auth.new_key())
    try:
        port = service.deploy(spec, where, app.hashes([key.get_secret_value()]), say)
    except BaseException:
        service.delete(spec.name, where)
        raise
    _keys[where.address, spec.name] = key
    endpoint = Endpoint(spec, where, port, key)
    say(f"ready: {endpoint.base_url} serves {', '.join(endpoint.model_ids)}")
    return endpoint


def _print(line: str) -> None:
    print(line, flush=True)


def _timed(progress: Progress) -> Progress:
    began = time.monotonic()
    return lambda line: progress(f"{time.monotonic() - began:5.1f} s  {line}")
