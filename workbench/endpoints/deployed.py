"""Deploy a spec, and the endpoint of the running service."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from serving.cluster import connection
from serving.deploy import service, status
from serving.deploy.preflight import check_spec
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
from workbench.endpoints.remote import Remote
from workbench.endpoints.scaling import rescaled, wait_for_replicas
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
    ) -> None:
        ids = [model.model_id for model in spec.models]
        ids += [AUTO] if isinstance(spec, PipelineSpec) and spec.router else []
        base_url = _base_url(spec, cluster, port)
        super().__init__(base_url, api_key, ids, spec.models[0].tokenizer, ours=True)
        self.spec = spec
        self.tenant_keys = dict(tenant_keys or {})
        self._cluster, self._tenants = cluster, tenants

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
        return Remote(self.base_url, key, self.model_ids, self.tokenizer, ours=True)

    def status(self) -> ServiceStatus:
        """Return the replicas of each deployment, as Serve reports them."""
        self._require_cluster()
        return status.service_status(self.spec.name)

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
        """
        self.status()
        spec = rescaled(self.spec, scaling)
        service.deploy(spec, self._cluster, self._tenants, progress or _print)
        self.spec = spec

    def delete(self) -> None:
        """Delete the service, and end the cluster if this process started it."""
        _keys.pop((self._cluster.address, self.spec.name), None)
        if connection.current() is self._cluster:
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
    progress: ProgressCallback | None = None,
) -> Endpoint:
    """Deploy a spec, and return its endpoint once it answers.

    If the deployment fails, everything that was started is deleted.

    Args:
        spec: A ServiceSpec, PipelineSpec or BaselineSpec; default: a ServiceSpec.
        api_key: The owner's key, which has no quotas; default: the environment variable
            ``LLM_WORKBENCH_API_KEY``, else a random one.
        tenants: Further tenants, each with its own key and quotas. Deploy again to change them
            while the service runs.
        address: Address of a Ray cluster; default: ``RAY_ADDRESS``, else a cluster is started that
            ends with this process.
        progress: Receives messages about what is happening; default: they are printed.

    Raises:
        SpecError: The spec cannot be served. Like the next four, it is raised before anything
            starts.
        ResourcesError: The cluster can never satisfy the spec's resources.
        MissingPackageError: A package that the spec needs is not installed.
        PortTakenError: Something else listens on the endpoint's port.
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
    if connection.current() is None:
        notify(connection.describe_connection(spec, address))
    cluster = connection.connect(spec, address)
    keyed, keys = issue_keys(requested, _keys.get((cluster.address, spec.name), {}))
    if owner_key:
        keys[OWNER] = SecretStr(owner_key)
    port = _start(spec, cluster, keyed, notify)
    _keys[cluster.address, spec.name] = keys
    tenant_keys = {name: key for name, key in keys.items() if name != OWNER}
    endpoint = Endpoint(spec, cluster, port, keys[OWNER], tenant_keys, keyed)
    _report_ready(endpoint, cluster, port, notify)
    return endpoint


def _start(
    spec: EndpointSpec,
    cluster: connection.Cluster,
    tenants: tuple[Tenant, ...],
    notify: ProgressCallback,
) -> int:
    """Deploy the spec and return its port; delete what has started if that fails."""
    try:
        return service.deploy(spec, cluster, tenants, notify)
    except BaseException:
        service.delete(spec.name, cluster)
        raise


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
