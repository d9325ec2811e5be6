"""One way into every notebook: deploy here, deploy on a cluster, or call what already runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from serving.errors import SpecError
from serving.spec.baseline import BaselineSpec
from workbench.endpoints.remote import Remote, remote, served_models
from workbench.errors import SettingError

if TYPE_CHECKING:
    from serving.deploy.service import Progress
    from serving.spec.service import EndpointSpec
    from serving.spec.tenants import Tenant


def open_endpoint(
    spec: EndpointSpec | None = None,
    *,
    address: str | None = None,
    api_key: str | None = None,
    tenants: Iterable[Tenant] = (),
    progress: Progress | None = None,
) -> Remote:
    """An endpoint for ``spec``: what every notebook's parameter ``address`` stands for.

    ========================  ======================================================================
    ``address``               what happens
    ========================  ======================================================================
    empty                     deploy on the cluster in ``RAY_ADDRESS``, else on one started here
    ``host:6379``, ``auto``   deploy on this Ray cluster (its control service)
    ``ray://host:10001``      deploy on it by Ray Client: from a laptop, or through a forwarded port
    ``https://host/v1``       deploy nothing; call this OpenAI endpoint, with the key in
                              ``api_key`` or ``LLM_WORKBENCH_API_KEY``
    ========================  ======================================================================

    A notebook needs no branch for any of them: ``endpoint = wb.open_endpoint(spec,
    address=address)``, then the clients, ``start_load``, ``Telemetry``, ``status()`` and
    ``delete()``. Where nothing was deployed, telemetry has no samples, ``deployment`` is None and
    ``delete()`` leaves the endpoint as it is. The spec's models must be among those it serves.

    Raises what `workbench.deploy` does; SettingError or EndpointGoneError for a URL that is no
    OpenAI endpoint, does not serve the spec's models, or refuses the key.
    """
    if address is not None and address.startswith(("http://", "https://")):
        if list(tenants):
            raise SpecError(
                f"address = {address!r} is a running endpoint, whose tenants its owner names; "
                "leave tenants out, or give the address of a Ray cluster."
            )
        return _called(spec, address, api_key)
    from workbench.endpoints.deployed import deploy

    return deploy(
        spec, address=address or None, api_key=api_key, tenants=tenants, progress=progress
    )


def _called(spec: EndpointSpec | None, url: str, api_key: str | None) -> Remote:
    if urlsplit(url).username is not None:
        raise SettingError(
            "address holds a user or a password; put the key into LLM_WORKBENCH_API_KEY"
        )
    if isinstance(spec, BaselineSpec):
        raise SettingError(
            f"address = {url!r} is a running endpoint, and a baseline has to be deployed beside "
            "it; give the address of a Ray cluster, or leave the baselines out"
        )
    if spec is None:
        return remote(url, api_key=api_key)
    found = remote(url, tokenizer=spec.models[0].path, api_key=api_key)
    found.model_ids = served_models(spec, found.model_ids, found.base_url)
    return found
