"""``deploy(spec)``: from a specification to an endpoint that answers the OpenAI client."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from serving.cluster import connection
from serving.deploy import service, status
from serving.deploy.preflight import check_spec
from serving.errors import DeployError, EndpointGoneError, SpecError
from serving.quotas import actor
from serving.quotas.accounts import Usage
from serving.spec import tenants as keys
from serving.spec.model import deployment_name
from serving.spec.pipeline import PipelineSpec
from serving.spec.router import AUTO
from serving.spec.scaling import ScalingSpec
from serving.spec.service import EndpointSpec, ServiceSpec
from serving.spec.tenants import KEY_VARIABLE, OWNER, Tenant
from workbench.endpoints.remote import Remote

if TYPE_CHECKING:
    from pandas import DataFrame

    from serving.deploy.service import Progress
    from serving.deploy.status import ServiceStatus

POLL_S = 0.5

_keys: dict[tuple[str, str], dict[str, SecretStr]] = {}
"""Each tenant's key, by cluster address and application name of what this process deployed."""


class Endpoint(Remote):
    """A running service: where it answers, clients ready to use, and its end.

    Also a context manager that deletes the service when left. The key is a ``SecretStr``, so no
    output shows it by accident. ``tenant_keys`` are those that deploy made, by tenant's name.
    """

    def __init__(
        self,
        spec: EndpointSpec,
        where: connection.Cluster,
        port: int,
        api_key: SecretStr,
        tenant_keys: Mapping[str, SecretStr] | None = None,
        admitted: tuple[Tenant, ...] = (),
    ) -> None:
        host = where.host if spec.host in ("0.0.0.0", "::") else spec.host
        self.spec = spec
        host = f"[{host}]" if ":" in host else host
        base_url = f"http://{host}:{port}{spec.route_prefix.rstrip('/')}/v1"
        ids = [model.model_id for model in spec.models]
        ids += [AUTO] if isinstance(spec, PipelineSpec) and spec.router else []
        super().__init__(base_url, api_key, ids, spec.models[0].tokenizer)
        self.tenant_keys = dict(tenant_keys or {})
        self._cluster, self._admitted = where, admitted

    @property
    def deployment(self) -> str:
        """The first model's deployment, as telemetry names it."""
        return self.deployments[0]

    @property
    def deployments(self) -> list[str]:
        """Each model's deployment, in the spec's order, as telemetry names it."""
        return [deployment_name(model) for model in self.spec.models]

    def as_tenant(self, name: str) -> Remote:
        """The same endpoint with this tenant's key: its clients meet the tenant's quotas.

        Raises:
            SpecError: no tenant of this name had a key made by deploy.
        """
        if name not in self.tenant_keys:
            known = ", ".join(self.tenant_keys) or "none"
            raise SpecError(f"tenant {name!r}: no key of it was made here; keys made: {known}.")
        return Remote(self.base_url, self.tenant_keys[name], self.model_ids, self.tokenizer)

    def status(self) -> ServiceStatus:
        """Each deployment's replicas, by Serve's own account.

        Raises:
            EndpointGoneError: the service was deleted, or its cluster is gone.
        """
        self._require_cluster()
        return status.service_status(self.spec.name)

    def details(self, timeout_s: float) -> dict[str, Any] | None:
        """Serve's own account of all it runs; None where it does not answer in ``timeout_s``.

        Raises:
            EndpointGoneError: the service was deleted, or its cluster is gone.
        """
        from ray.exceptions import GetTimeoutError, RayError

        self._require_cluster()
        try:
            found = status.details(timeout_s)
        except GetTimeoutError:
            return None
        except (RayError, ConnectionError) as problem:
            raise EndpointGoneError(
                f"{self.spec.name}: its cluster does not answer ({type(problem).__name__}). "
                "Deploy it again."
            ) from None
        if self.spec.name not in found["applications"]:
            raise EndpointGoneError(
                f"{self.spec.name}: the cluster runs no such service. Deploy it again."
            )
        return found

    def _require_cluster(self) -> None:
        if connection.current() is not self._cluster:
            raise EndpointGoneError(f"{self.spec.name}: its cluster is gone. Deploy it again.")

    def usage(
        self,
        *,
        usd_per_million_prompt_tokens: float | None = None,
        usd_per_million_output_tokens: float | None = None,
    ) -> DataFrame:
        """What each tenant has used since the service was first deployed, a row each.

        Columns ``requests, prompt_tokens, output_tokens, shed`` (the service was full),
        ``refused`` (over a quota or limit), ``errors``; with both prices also ``usd``. The record
        outlives replicas; it lags behind by a quarter of a second.

        Raises:
            EndpointGoneError: the service was deleted, or its cluster is gone.
        """
        from pandas import DataFrame

        self.status()
        frame = DataFrame.from_dict(
            actor.usage(self.spec.name), orient="index", columns=list(vars(Usage()))
        )
        frame = frame.rename_axis("tenant").sort_index()
        prompt, output = usd_per_million_prompt_tokens, usd_per_million_output_tokens
        if prompt is not None and output is not None:
            cost = frame["prompt_tokens"] * prompt + frame["output_tokens"] * output
            frame["usd"] = cost / 1e6
        return frame

    async def wait_until_scaled(self, replicas: int = 1, *, timeout_s: float = 600.0) -> None:
        """Wait until exactly `replicas` replicas of the first model run and no other is on its way.

        Raises:
            DeployError: the model did not reach that state within `timeout_s` seconds.
            EndpointGoneError: the service no longer exists.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            status = (await asyncio.to_thread(self.status)).deployments[self.deployment]
            moving = status.starting + status.stopping
            if (status.target, status.running, moving) == (replicas, replicas, 0):
                return
            if time.monotonic() > deadline:
                raise DeployError(
                    f"{self.deployment} did not reach {replicas} replicas within {timeout_s:g} s: "
                    f"{status.running} running, {status.starting} starting, {status.stopping} "
                    f"stopping, target {status.target}. Is it still under load?"
                )
            await asyncio.sleep(POLL_S)

    def rescale(self, *, progress: Progress | None = None, **scaling: Any) -> None:
        """Change fields of ``ScalingSpec`` on the running service; its replicas stay.

        Returns once the service runs as changed.

        Raises:
            SpecError: a field or value that is none, or a change that needs another path.
            EndpointGoneError: the service was deleted, or its cluster is gone.
        """
        self.status()
        spec = rescaled(self.spec, scaling)
        service.deploy(spec, self._cluster, self._admitted, progress or _print)
        self.spec = spec

    def delete(self) -> None:
        """Delete the service; where this project started the cluster, end that with it."""
        _keys.pop((self._cluster.address, self.spec.name), None)
        if connection.current() is self._cluster:
            service.delete(self.spec.name, self._cluster)


def rescaled(spec: EndpointSpec, scaling: Mapping[str, Any]) -> EndpointSpec:
    """``spec`` with these fields of every model's scaling changed.

    Raises:
        SpecError: a field or value that is none, or scaling to zero turned on or off, for which
            requests take another path and all replicas would be replaced.
    """
    # The first deployment's number of replicas says nothing about a running service.
    scaling = {"initial_replicas": None, **scaling}
    models = tuple(
        model.model_copy(update={"scaling": ScalingSpec(**model.scaling.model_dump() | scaling)})
        for model in spec.models
    )
    field = {"models": models} if isinstance(spec, PipelineSpec) else {"model": models[0]}
    changed = spec.model_copy(update=field)
    if changed.composed != spec.composed:
        raise SpecError(
            f"min_replicas = {scaling['min_replicas']}: a running service cannot change between 0 "
            "and more; deploy it anew."
        )
    return changed


def deploy(
    spec: EndpointSpec | None = None,
    *,
    api_key: str | None = None,
    tenants: Iterable[Tenant] = (),
    address: str | None = None,
    progress: Progress | None = None,
) -> Endpoint:
    """Bring up ``spec`` (a ServiceSpec or a PipelineSpec) and return its endpoint once it answers.

    ``api_key``, or the variable ``LLM_WORKBENCH_API_KEY``, is the owner's key, which has no quotas;
    a random one is made where neither is given. ``tenants`` may call too, each with a key and
    within quotas of its own; deploy again to change them while the service runs. ``address`` (or
    ``RAY_ADDRESS``) names a Ray cluster to attach to; without it one is started here, and ends
    with this process. ``progress`` is told what is waited for; by default it prints. Whatever goes
    wrong, nothing half-started stays.

    Raises:
        SpecError, ResourcesError, MissingPackageError, PortTakenError, ClusterError: refused
            before anything starts; the message names the field, the value and the way out.
        DeployError: a replica did not start; the message has the engine's last words.
    """
    spec = spec or ServiceSpec()
    say = _timed(progress or _print)
    check_spec(spec)
    given = api_key or os.environ.get(KEY_VARIABLE)
    owner = Tenant(name=OWNER, key_hash=keys.key_hash(given) if given else None)
    asked = (owner, *tenants)
    keys.check_tenants(asked)
    if connection.current() is None:
        say(connection.describe_connection(spec, address))
    where = connection.connect(spec, address)
    admitted, made = keys.issue_keys(asked, _keys.get((where.address, spec.name), {}))
    if given:
        made[OWNER] = SecretStr(given)
    try:
        port = service.deploy(spec, where, admitted, say)
    except BaseException:
        service.delete(spec.name, where)
        raise
    _keys[where.address, spec.name] = made
    others = {name: key for name, key in made.items() if name != OWNER}
    endpoint = Endpoint(spec, where, port, made[OWNER], others, admitted)
    say(f"ready: {endpoint.base_url} serves {', '.join(endpoint.model_ids)}")
    if not where.ours and not endpoint.answers():
        say(
            f"but {endpoint.base_url} does not answer here: forward port {port} of the cluster's "
            f"head to this machine, or deploy with host = '0.0.0.0'"
        )
    return endpoint


def _print(line: str) -> None:
    print(line, flush=True)


def _timed(progress: Progress) -> Progress:
    began = time.monotonic()
    return lambda line: progress(f"{time.monotonic() - began:5.1f} s  {line}")
