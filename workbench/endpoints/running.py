"""The services that run on a cluster, whoever deployed them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from serving.cluster import connection

if TYPE_CHECKING:
    import pandas as pd


def services(*, address: str | None = None) -> pd.DataFrame:
    """Return the services on the cluster of this process, whoever deployed them.

    Args:
        address: Address of a Ray cluster to connect to; default: the cluster that this process is
            connected to, else ``RAY_ADDRESS``. Without any of them, no service runs.

    Returns:
        One row per service, with the columns ``models``, ``state``, ``replicas`` (running),
        ``owner``, ``uptime_s`` (since it was deployed last), ``idle_s`` (without a request),
        ``lease_left_s`` and ``stops_in_s`` (if no request arrives), and ``dollars_per_hour``, if it
        was deployed with prices.

    Raises:
        ClusterError: The cluster cannot be reached.
    """
    import pandas as pd

    from serving.deploy.services import ServiceSummary, list_services

    target = address or os.environ.get("RAY_ADDRESS")
    if connection.current() is None and target is None:
        rows = []
    else:
        connection.connect(address=address)
        rows = list_services()
    frame = pd.DataFrame([row._asdict() for row in rows], columns=list(ServiceSummary._fields))
    return frame.set_index("name")
