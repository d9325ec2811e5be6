"""CPU use of an idle service: one replica of the embedded model, without requests.

`idle_cores` is the CPU time of all processes of the service over wall time, the median of several
intervals: Ray's daemons, Serve's controller and proxy, HAProxy, the replica and its engine.
`idle_cores_ROLE` is the share of each kind of process. This process, as a user's kernel, is not
included, and there is no telemetry.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from contextlib import suppress
from statistics import median

import psutil
from _report import Goal, report
from _vllm import prepare

import workbench as wb

GOALS: dict[str, Goal] = {"idle_cores": {"max": 0.10}}
ROLES = {
    "haproxy": "haproxy",
    "ray::ServeController": "controller",
    "ray::Proxy": "proxy",
    "ray::HAProxy": "proxy",
    "ray::ServeReplica": "replica",
    "EngineCore": "engine",
    "VLLM::": "engine",
    "forkserver": "engine",
    "gcs_server": "gcs",
    "raylet": "raylet",
    "dashboard": "dashboard",
    "agent": "agents",
    "log_monitor": "log_monitor",
    "monitor.py": "monitor",
    "ray.util.client": "client_server",
    "ray::QuotaLedger": "quotas",
    "ray::": "other_actors",
}
"""Role of a process by a part of its command; the first that fits counts."""


def main() -> None:
    """Measure, and print the result as the last line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30, help="length of an interval")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--settle", type=float, default=30, help="seconds after the first answer")
    options = parser.parse_args()
    prepare()
    with wb.deploy(wb.ServiceSpec(port=0)) as endpoint:
        endpoint.client.chat.completions.create(
            model=endpoint.model_id,
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=8,
        )
        time.sleep(options.settle)
        intervals = [interval(options.seconds) for _ in range(options.repeats)]
    roles = {role for shares in intervals for role in shares}
    figures = {"idle_cores": round(median(sum(shares.values()) for shares in intervals), 3)}
    figures |= {
        f"idle_cores_{role}": round(median(shares.get(role, 0.0) for shares in intervals), 3)
        for role in sorted(roles)
    }
    report("idle", figures, GOALS)


def interval(seconds: float) -> dict[str, float]:
    """Return the cores that each role takes in the next seconds."""
    before, start = cpu_s(), time.monotonic()
    time.sleep(seconds)
    after, passed = cpu_s(), time.monotonic() - start
    shares: dict[str, float] = defaultdict(float)
    for (pid, role), used_s in after.items():
        shares[role] += (used_s - before.get((pid, role), 0.0)) / passed
    largest_first = sorted(shares.items(), key=lambda item: -item[1])
    print(", ".join(f"{role} {share:.3f}" for role, share in largest_first), flush=True)
    return shares


def cpu_s() -> dict[tuple[int, str], float]:
    """Return the CPU time, in seconds, that each process of the service has used, and its role."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            command = f"{process.name()} {' '.join(process.cmdline())}"
            times = process.cpu_times()
            found[process.pid, role(command)] = times.user + times.system
    return found


def role(command: str) -> str:
    """Return the role of a process."""
    return next((name for part, name in ROLES.items() if part in command), "other")


if __name__ == "__main__":
    main()
