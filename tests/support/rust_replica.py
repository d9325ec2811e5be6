"""A replica with vLLM's Rust front end in one process, without Ray or Serve running.

It is the class that Serve runs, with a real engine. As Serve does, the program serves its
application on a port of the loopback address, cancels a request whose client disconnects, and calls
the destructor at the end. It writes the port to the file that its argument names, then serves until
it is terminated. If the process that started it ends, it ends with all its processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MODEL = "tiny"
MAX_MODEL_LEN = 2048
MAX_TOKENS = 1900
"""Enough for a stream of seconds, so that a busy machine can act while it is in progress."""
CHECK_S = 10.0


async def main(port_file: Path) -> None:
    """Start the replica and serve it."""
    # Otherwise Ray connects to any cluster of this machine when it is first used.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    import uvicorn
    from ray import serve
    from ray.llm._internal.serve.engines.vllm.vllm_models import VLLMEngineConfig
    from support.gate_server import as_in_replica
    from support.processes import end_group_with_parent

    from serving.compat.vllm_rust import PATH_VARIABLE, rust_program
    from serving.deploy.deployments import engine_fields
    from serving.engine.entry import EngineReplica
    from serving.gateway.gate import Gate
    from serving.spec.model import ModelSpec
    from serving.spec.service import ServiceSpec

    end_group_with_parent()
    # The server raises the signal again when it has stopped.
    signal.signal(signal.SIGTERM, lambda *_: None)
    # Without Ray there is no placement group, which the executor of a CPU does not use.
    VLLMEngineConfig.get_or_create_pg = lambda self: None
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="replica"))
    serve.get_replica_context = lambda: context
    model = ModelSpec(
        id=MODEL,
        max_model_len=MAX_MODEL_LEN,
        kv_cache_gib=0.25,
        frontend="rust",
        env={PATH_VARIABLE: str(rust_program())},
    )
    spec = ServiceSpec(model=model, limits={"max_tokens": MAX_TOKENS})
    replica: Any = EngineReplica.__new__(EngineReplica)
    await replica.__init__(engine_fields(spec, model))
    gate = Gate(replica._app, lambda: config())
    usage = gate.quotas.lease(config().tenants[0]).usage
    app = as_in_replica(with_usage(gate, usage, replica), "")
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="critical"))
    started = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.05)
    written = port_file.with_suffix(".part")
    written.write_text(str(server.servers[0].sockets[0].getsockname()[1]))
    written.rename(port_file)
    await started
    await replica.__del__()
    os._exit(0)  # Serve kills the process.


def config() -> Any:
    """The gate's configuration: one tenant, who is the owner."""
    from support.gate_server import CONFIG

    from serving.gateway.config import ServedModel
    from serving.spec.limits import Limits
    from serving.spec.tenants import OWNER, Tenant

    tenant = Tenant(name=OWNER, key_hash=CONFIG.tenants[0].key_hash)
    changes = {"tenants": (tenant,), "models": (ServedModel(id=MODEL),), "max_ongoing_requests": 8}
    return CONFIG.model_copy(update=changes | {"limits": Limits(max_tokens=MAX_TOKENS)})


def with_usage(gate: Any, usage: Any, replica: Any) -> Any:
    """Answer `/usage` with the tokens that were charged and the figures for the autoscaler.

    `/check` is answered with the result of the health check that Serve makes.
    """

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/usage":
            figures = {"charged": [usage.prompt_tokens, usage.output_tokens, usage.errors]}
            answer = json.dumps(figures | replica.record_autoscaling_stats())
        elif scope["type"] == "http" and scope["path"] == "/check":
            answer = await health(replica)
        else:
            return await gate(scope, receive, send)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer.encode()})

    return app


async def health(replica: Any) -> str:
    """The name of the error of the health check, within the time that Serve would allow it."""
    try:
        await asyncio.wait_for(replica.check_health(), CHECK_S)
    except Exception as error:
        return type(error).__name__
    return "healthy"


if __name__ == "__main__":
    # A program has only its own folder on the path.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    asyncio.run(main(Path(sys.argv[1])))
