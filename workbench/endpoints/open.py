"""Open an endpoint from a notebook's `address`: deploy a spec, or call a running endpoint."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from serving.errors import SpecError
from serving.spec.baseline import BaselineSpec
from workbench.endpoints.models import served_models
from workbench.endpoints.remote import Remote, remote
from workbench.errors import SettingError

if TYPE_CHECKING:
    from serving.deploy.service import ProgressCallback
    from serving.spec.service import EndpointSpec
    from serving.spec.tenants import Tenant
    from workbench.endpoints.terms import ReplicaPrices


def open_endpoint(
    spec: EndpointSpec | None = None,
    *,
    address: str | None = None,
    api_key: str | None = None,
    tenants: Iterable[Tenant] = (),
    replace: bool = False,
    lease_minutes: float | None = None,
    idle_minutes: float | None = None,
    prices: ReplicaPrices | None = None,
    progress: ProgressCallback | None = None,
) -> Remote:
    """Return an endpoint for ``spec``, deployed or called as ``address`` says.

    ========================  ======================================================================
    ``address``               effect
    ========================  ======================================================================
    empty                     deploy on the cluster in ``RAY_ADDRESS``, else on one started here
    ``host:6379``, ``auto``   deploy on this Ray cluster
    ``ray://host:10001``      deploy on this Ray cluster by Ray Client, from outside the cluster
    ``https://host/v1``       deploy nothing, and call this OpenAI endpoint
    ========================  ======================================================================

    The result works the same way in every case: its clients, ``start_load``, ``Telemetry``,
    ``status()`` and ``delete()``. For an endpoint that was not deployed here, telemetry has only
    samples of the server's own ``/metrics``, if it can be read, ``deployment`` is None, and
    ``delete()`` does nothing.

    Args:
        spec: The service or pipeline; default: a ServiceSpec. A running endpoint must serve its
            models.
        address: Where to deploy, or what to call, as in the table.
        api_key: The owner's key, or the key of the running endpoint; default: the environment
            variable ``LLM_WORKBENCH_API_KEY``.
        tenants: Tenants with their own keys and quotas, if the spec is deployed.
        replace: Whether to replace an application of another user, as for `workbench.deploy`.
        lease_minutes: As for `workbench.deploy`.
        idle_minutes: As for `workbench.deploy`.
        prices: As for `workbench.deploy`; not used for a running endpoint.
        progress: Receives messages while the spec is deployed; default: they are printed.

    Raises:
        SettingError: The URL has a password, is not an OpenAI endpoint, does not serve the spec's
            models or refuses the key.
        EndpointGoneError: Nothing answers at the URL.
        SpecError: Tenants, a lease or an idle time were given for a running endpoint.
        WorkbenchError: As for `workbench.deploy`.
    """
    if address is not None and address.startswith(("http://", "https://")):
        if list(tenants):
            raise SpecError(
                f"tenants must be left out for a running endpoint, got address = {address!r}; its "
                "owner defines the tenants, so give the address of a Ray cluster to define your own"
            )
        for name, minutes in {"lease_minutes": lease_minutes, "idle_minutes": idle_minutes}.items():
            if minutes is not None:
                raise SpecError(
                    f"{name} must be left out for a running endpoint, got {name} = {minutes:g} and "
                    f"address = {address!r}; its owner decides when it stops"
                )
        return _call_running(spec, address, api_key)
    from workbench.endpoints.deployed import deploy

    return deploy(
        spec,
        address=address or None,
        api_key=api_key,
        tenants=tenants,
        replace=replace,
        lease_minutes=lease_minutes,
        idle_minutes=idle_minutes,
        prices=prices,
        progress=progress,
    )


def _call_running(spec: EndpointSpec | None, url: str, api_key: str | None) -> Remote:
    if urlsplit(url).username is not None:
        raise SettingError(
            "address must not contain a user or a password; set LLM_WORKBENCH_API_KEY instead"
        )
    if isinstance(spec, BaselineSpec):
        raise SettingError(
            f"address must be a Ray cluster for a baseline, got the running endpoint {url!r}; "
            "give the address of a Ray cluster, or leave the baselines out"
        )
    if spec is None:
        return remote(url, api_key=api_key)
    endpoint = remote(
        url, tokenizer=spec.models[0].path, api_key=api_key, sessions=spec.uses_sessions
    )
    endpoint.model_ids = served_models(spec, endpoint.model_ids, endpoint.base_url)
    return endpoint
