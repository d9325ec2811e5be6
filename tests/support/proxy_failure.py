"""A program: Ray Serve with an application of plain Python, whose HAProxy is killed under load.

It prints one line of JSON: how many requests failed and how, when the last of them began, and when
HAProxy of Ray Serve's new manager had taken over.
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import os
import signal
import sys
import threading
import time

import psutil

THREADS = 8


def send(port: int) -> str:
    """Return the status of one request on a new connection, or the name of the error."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/")
        return str(connection.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


def proxies(ended: set[int]) -> list[psutil.Process]:
    """Return the processes of HAProxy on this process's own cluster."""
    from serving.cluster import connection

    cluster = connection.current()
    assert cluster is not None
    assert cluster.supervisor is not None
    tree = psutil.Process(cluster.supervisor.pid).children(recursive=True)
    found = []
    for process in tree:
        with contextlib.suppress(psutil.Error):  # It has ended.
            if process.pid not in ended and process.name() == "haproxy":
                found.append(process)
    return found


def serves(process: psutil.Process) -> bool:
    """Whether it runs and is no standby process."""
    with contextlib.suppress(psutil.Error):
        return bool(process.cmdline()) and not process.cmdline()[-1].endswith(".standby")
    return False


def deploy() -> None:
    """Run an application of plain Python."""
    from ray import serve

    class Plain:
        async def __call__(self) -> str:
            return "ok"

    options = {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0}}
    serve.run(serve.deployment(**options)(Plain).bind(), name="plain", route_prefix="/")


def main() -> None:
    from serving.cluster import connection
    from serving.deploy.service import _start_serve
    from serving.spec.service import ServiceSpec

    spec = ServiceSpec(port=0)
    port = _start_serve(spec, connection.connect(), lambda line: print(line, file=sys.stderr))
    deploy()
    while send(port) != "200":
        time.sleep(0.1)
    records: list[tuple[float, float, str]] = []
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            start = time.monotonic()
            status = send(port)
            records.append((start, time.monotonic(), status))
            time.sleep(0.02)

    threads = [threading.Thread(target=load) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    time.sleep(3)
    before = len(records)
    killed = proxies(set())
    at = time.monotonic()
    for process in killed:
        os.kill(process.pid, signal.SIGKILL)
    ended = {process.pid for process in killed}
    taken_over = None
    while taken_over is None and time.monotonic() - at < 120:
        if any(serves(process) for process in proxies(ended)):
            taken_over = time.monotonic() - at
        time.sleep(0.2)
    time.sleep(5)
    done.set()
    for thread in threads:
        thread.join()
    # When they began: on a busy machine a failed request may end much later.
    failed = [(start - at, s) for start, end, s in records if end > at and s != "200"]
    last = max((seconds for seconds, _ in failed), default=0.0)
    print(
        json.dumps(
            {
                "sent_before": before,
                "failed_before": sum(s != "200" for _, _, s in records[:before]),
                "killed": len(killed),
                "failures": dict(collections.Counter(status for _, status in failed)),
                "recovery_s": round(last, 3),
                "takeover_s": taken_over,
                "sent": len(records),
            }
        ),
        flush=True,
    )
    connection.disconnect()


if __name__ == "__main__":
    main()
