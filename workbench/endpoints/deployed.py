"""Deploy a spec, and the endpoint of the running service."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from serving.cluster import connection
from serving.deploy import ownership, service, status
from serving.deploy.preflight import check_spec
from serving.engine.frontend import other_frontends
from serving.errors import EndpointGoneError, SpecError
from serving.spec.model import deployment_name
from serving.spec.pipeline import PipelineSpec
from serving.spec.router import AUTO
from serving.spec.service import EndpointSpec, ServiceSpec
from serving.spec.tenants import (
    KEY_VARIABLE,
    OWNER,
    Tenant,
    check_tenants,
    issue_keys,
    key_hash,
)
from workbench.endpoints.announce import announce
from workbench.endpoints.remote import Remote
from workbench.endpoints.scaling import rescaled, wait_for_replicas
from workbench.endpoints.terms import ReplicaPrices, make_terms, pass_on_messages, under_terms
from workbench.endpoints.usage import usage_frame

if TYPE_CHECKING:
    from pandas import DataFrame

    from serving.deploy.service import ProgressCallback
    from serving.deploy.status import ServiceStatus

_keys: dict[tuple[str, str], dict[str, SecretStr]] = {}
"""Tenants' keys by name, for each cluster address and application that this process deployed."""


class Endpoint(Remote):
    """The endpoint of a service that this process deployed.

    It is also a context manager that deletes the service at the end. ``tenant_keys`` has the keys
    that `deploy` created, by tenant name.

    All methods that ask the cluster raise EndpointGoneError if the service was deleted or its
    cluster is gone.
    """

    def __init__(
        self,
        spec: EndpointSpec,
        cluster: connection.Cluster,
        port: int,
        api_key: SecretStr,
        tenant_keys: Mapping[str, SecretStr] | None = None,
        tenants: tuple[Tenant, ...] = (),
        requested: EndpointSpec | None = None,
    ) -> None:
        ids = [model.model_id for model in spec.models]
        ids += [AUTO] if isinstance(spec, PipelineSpec) and spec.router else []
        base_url = _base_url(spec, cluster, port)
        super().__init__(
            base_url,
            api_key,
            ids,
            spec.models[0].tokenizer,
            ours=True,
            sessions=spec.uses_sessions,
        )
        self.spec = spec
        self._requested = requested or spec
        self.tenant_keys = dict(tenant_keys or {})
        self._cluster, self._tenants = cluster, tenants

    @property
    def requested_spec(self) -> EndpointSpec:
        """The spec with the name and the route that `deploy` was called with.

        ``spec`` differs where a default name belongs to another application.
        """
        names = {"name": self._requested.name, "route_prefix": self._requested.route_prefix}
        return self.spec.model_copy(update=names)

    @property
    def deployment(self) -> str:
        """The first model's deployment, as telemetry names it."""
        return self.deployments[0]

    @property
    def deployments(self) -> list[str]:
        """Each model's deployment, in the spec's order, as telemetry names it."""
        return [deployment_name(model) for model in self.spec.models]

    def as_tenant(self, name: str) -> Remote:
        """Return the same endpoint with a tenant's key, so that the tenant's quotas apply.

        Raises:
            SpecError: `deploy` created no key for a tenant of this name.
        """
        if name not in self.tenant_keys:
            known = ", ".join(self.tenant_keys) or "none"
            raise SpecError(
                f"tenant must be one whose key deploy created ({known}), got {name!r}; use "
                "workbench.remote with the tenant's own key"
            )
        key = self.tenant_keys[name]
        return Remote(
            self.base_url, key, self.model_ids, self.tokenizer, ours=True, sessions=self.sessions
        )

    def status(self) -> ServiceStatus:
        """Return the replicas of each deployment, and the time until the service stops itself.

        It also has the HTTP front end of each model where that is not vLLM's default.

        Raises:
            EndpointGoneError: The service was deleted or has stopped.
        """
        self._require_cluster()
        found = status.service_status(self.spec.name)
        return replace(found, frontends=self._frontends)

    @cached_property
    def _frontends(self) -> dict[str, str]:
        return other_frontends(self.spec.engines)  # It may run a program.

    def details(self, timeout_s: float) -> dict[str, Any] | None:
        """Return Serve's report on all applications; None if it does not answer in time."""
        from ray.exceptions import GetTimeoutError, RayError

        self._require_cluster()
        try:
            details = status.details(timeout_s)
        except GetTimeoutError:
            return None
        except (RayError, ConnectionError) as error:
            raise EndpointGoneError(
                f"{self.spec.name}: its cluster does not answer ({type(error).__name__}); deploy "
                "it again"
            ) from None
        if self.spec.name not in details["applications"]:
            raise EndpointGoneError(
                f"{self.spec.name}: the cluster runs no such service; deploy it again"
            )
        return details

    def _require_cluster(self) -> None:
        if connection.current() is not self._cluster:
            raise EndpointGoneError(f"{self.spec.name}: its cluster is gone; deploy it again")

    def usage(
        self,
        *,
        usd_per_million_prompt_tokens: float | None = None,
        usd_per_million_output_tokens: float | None = None,
    ) -> DataFrame:
        """Return each tenant's usage since the service was first deployed.

        Returns:
            One row per tenant, with the columns ``requests``, ``prompt_tokens``,
            ``output_tokens``, ``shed`` (the service was full), ``refused`` (over a quota or limit)
            and ``errors``; with both prices also ``usd``. The numbers outlive replicas, and lag by
            a quarter of a second.
        """
        self.status()
        return usage_frame(
            self.spec.name, usd_per_million_prompt_tokens, usd_per_million_output_tokens
        )

    async def wait_until_scaled(self, replicas: int = 1, *, timeout_s: float = 600.0) -> None:
        """Wait until the first model has exactly `replicas` replicas, all of them running.

        Raises:
            DeployError: The model did not reach that state within `timeout_s` seconds.
        """
        await wait_for_replicas(self.status, self.deployment, replicas, timeout_s)

    def rescale(self, *, progress: ProgressCallback | None = None, **scaling: Any) -> None:
        """Change fields of ``ScalingSpec`` on the running service, which keeps its replicas.

        Returns once the change is in effect.

        Raises:
            SpecError: A field or value is invalid, or the change needs a new deployment.
            NameTakenError: Another process has replaced the service.
        """
        self.status()
        spec = rescaled(self.spec, scaling)
        ownership.check_owner(spec, self._cluster.address, status.details()["applications"])
        ownership.remember(spec, self._cluster.address)
        service.deploy(spec, self._cluster, self._tenants, progress or _print)
        self.spec = spec

    def delete(self) -> None:
        """Delete the service, and end the cluster if this process started it.

        A service that another process has replaced stays.
        """
        _keys.pop((self._cluster.address, self.spec.name), None)
        if connection.current() is not self._cluster:
            return
        if self._cluster.ours or ownership.owns(
            self.spec, self._cluster.address, status.details()["applications"]
        ):
            service.delete(self.spec.name, self._cluster)


def _base_url(spec: EndpointSpec, cluster: connection.Cluster, port: int) -> str:
    host = cluster.host if spec.host in ("0.0.0.0", "::") else spec.host
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{port}{spec.route_prefix.rstrip('/')}/v1"


def deploy(
    spec: EndpointSpec | None = None,
    *,
    api_key: str | None = None,
    tenants: Iterable[Tenant] = (),
    address: str | None = None,
    replace: bool = False,
    lease_minutes: float | None = None,
    idle_minutes: float | None = None,
    prices: ReplicaPrices | None = None,
    progress: ProgressCallback | None = None,
) -> Endpoint:
    """Deploy a spec, and return its endpoint once it answers.

    If the deployment fails, a service that ran before under the same name answers again, and
    otherwise everything that was started is deleted.

    Args:
        spec: A ServiceSpec, PipelineSpec or BaselineSpec; default: a ServiceSpec.
        api_key: The owner's key, which has no quotas; default: the environment variable
            ``LLM_WORKBENCH_API_KEY``, else a random one.
        tenants: Further tenants, each with its own key and quotas. Deploy again to change them
            while the service runs.
        address: Address of a Ray cluster; default: ``RAY_ADDRESS``, else a cluster is started that
            ends with this process.
        replace: Whether to replace an application of the same name that neither this process nor
            its user with the same spec deployed. Without it, a spec with the default name gets
            another one, such as ``llm-ada`` at the route ``/llm-ada``.
        lease_minutes: Minutes after which the service stops by itself, its start included. Deploy
            again to renew the lease.
        idle_minutes: Minutes without a request after which the service stops by itself. Both need
            no notebook: an actor on the cluster stops the service. A warning precedes it.
        prices: What the replicas cost, such as `workbench.Prices`, for the status.
        progress: Receives messages about what is happening; default: they are printed.

    Raises:
        SpecError: The spec cannot be served, or a time is out of range. Like the next five, it is
            raised before anything starts.
        ResourcesError: The cluster can never satisfy the spec's resources.
        MissingPackageError: A package that the spec needs is not installed.
        PortTakenError: Something else listens on the endpoint's port.
        NameTakenError: The name or route belongs to an application of another user.
        ClusterError: The cluster cannot be reached, or runs with other options.
        DeployError: A replica did not start; the message has the engine's own error.
    """
    spec = spec or ServiceSpec()
    notify = _with_elapsed_time(progress or _print)
    check_spec(spec)
    owner_key = api_key or os.environ.get(KEY_VARIABLE)
    owner = Tenant(name=OWNER, key_hash=key_hash(owner_key) if owner_key else None)
    requested = (owner, *tenants)
    check_tenants(requested)
    terms = make_terms(spec, lease_minutes, idle_minutes, prices)
    if connection.current() is None:
        notify(connection.describe_connection(spec, address))
    cluster = connection.connect(spec, address)
    requested_spec = spec
    spec = _own_name(spec, cluster, replace, notify)
    keyed, keys = issue_keys(requested, _keys.get((cluster.address, spec.name), {}))
    if owner_key:
        keys[OWNER] = SecretStr(owner_key)
    with under_terms(spec.name, terms, cluster):
        port = service.deploy(spec, cluster, keyed, notify)
    # Another process may have deployed under the same name at the same time.
    ownership.check_owner(spec, cluster.address, status.details()["applications"])
    _keys[cluster.address, spec.name] = keys
    tenant_keys = {name: key for name, key in keys.items() if name != OWNER}
    endpoint = Endpoint(spec, cluster, port, keys[OWNER], tenant_keys, keyed, requested_spec)
    _report_ready(endpoint, cluster, port, notify)
    pass_on_messages(spec.name, terms, cluster, progress or _print)
    announce()
    return endpoint


def _own_name(
    spec: EndpointSpec, cluster: connection.Cluster, replace: bool, notify: ProgressCallback
) -> EndpointSpec:
    """Return the spec under a name that this process may deploy, and record it."""
    applications = status.details()["applications"]
    own = ownership.named(spec, cluster.address, applications, replace=replace)
    if own.name != spec.name:
        notify(
            f"{spec.name} is an application that this process did not deploy; this one is "
            f"{own.name} at {own.route_prefix}"
        )
    ownership.remember(own, cluster.address)
    return own


def _report_ready(
    endpoint: Endpoint, cluster: connection.Cluster, port: int, notify: ProgressCallback
) -> None:
    notify(f"ready: {endpoint.base_url} serves {', '.join(endpoint.model_ids)}")
    if not cluster.ours and not endpoint.answers():
        notify(
            f"warning: {endpoint.base_url} does not answer from here; forward port {port} of the "
            "cluster's head node, or deploy with host = '0.0.0.0'"
        )


def _print(line: str) -> None:
    print(line, flush=True)


def _with_elapsed_time(progress: ProgressCallback) -> ProgressCallback:
    started = time.monotonic()
    return lambda line: progress(f"{time.monotonic() - started:5.1f} s  {line}")
