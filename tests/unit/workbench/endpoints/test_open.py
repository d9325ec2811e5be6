"""A notebook's `address`, against real sockets: HTTP servers, gRPC servers and a closed port."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from serving.cluster import attach
from serving.cluster.connection import Cluster
from serving.compat.ray import CLIENT_PROBE, GCS_PROBE
from serving.errors import ClusterError, EndpointGoneError, SpecError
from serving.spec.baseline import BaselineSpec
from serving.spec.model import ModelSpec
from serving.spec.service import ServiceSpec
from serving.spec.tenants import Tenant
from workbench.endpoints.open import open_endpoint
from workbench.errors import SettingError
from workbench.telemetry.sampler import Telemetry

KEY = "sk-a-key-of-enough-length"
NOWHERE = "127.0.0.1:9"  # the discard service, which no host runs today


@contextmanager
def http_server(status: int, body: bytes) -> Iterator[tuple[str, list[str]]]:
    """Serve one answer to every GET; yield the address, and the path and key of each request."""
    requests: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(f"{self.path} {self.headers['authorization']}")
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()


def listing(*ids: str) -> bytes:
    return json.dumps({"object": "list", "data": [{"id": name} for name in ids]}).encode()


class TestEndpointUrl:
    def test_endpoint_is_called_and_not_deleted(self) -> None:
        with http_server(200, listing("other", "tiny-llama-glossary")) as (server, requests):
            url = f"http://{server}/v1"
            with open_endpoint(ServiceSpec(), address=url, api_key=KEY) as endpoint:
                assert endpoint.base_url == url
                assert endpoint.model_id == "tiny-llama-glossary"
                assert endpoint.tokenizer == ModelSpec().path
                assert endpoint.deployment is None
                assert endpoint.status().deployments == {}
                assert str(endpoint.status()) == f"{url} is called, not deployed, from here"
            assert requests == [f"/v1/models Bearer {KEY}"]

    def test_key_may_come_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LLM_WORKBENCH_API_KEY", KEY)
        with http_server(200, listing("tiny-llama-glossary")) as (server, requests):
            text = repr(open_endpoint(ServiceSpec(), address=f"http://{server}/v1/"))
            assert requests == [f"/v1/models Bearer {KEY}"]
            assert KEY not in text

    def test_async_client_is_closed_with_its_event_loop(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def list_models(endpoint: Any) -> Any:
            assert endpoint.async_client is endpoint.async_client
            await endpoint.async_client.models.list()
            return endpoint.async_client

        with http_server(200, listing("tiny-llama-glossary")) as (server, _):
            remote = open_endpoint(ServiceSpec(), address=f"http://{server}/v1", api_key=KEY)
            clients = [asyncio.run(list_models(remote)) for _ in range(2)]
        assert clients[0] is not clients[1]
        assert all(client.is_closed() for client in clients)
        del clients, remote
        gc.collect()
        assert "Unclosed" not in caplog.text

    def test_model_is_found_by_its_id_or_its_source(self) -> None:
        with http_server(200, listing("org/big", "mine")) as (server, _):
            for model in (ModelSpec(source="org/big"), ModelSpec(source="./x", id="mine")):
                endpoint = open_endpoint(ServiceSpec(model=model), address=f"http://{server}/v1")
                assert endpoint.model_id == ("org/big" if model.id is None else "mine")

    @pytest.mark.parametrize("terms", [{"lease_minutes": 60}, {"idle_minutes": 60}])
    def test_its_owner_decides_when_it_stops(self, terms: dict[str, float]) -> None:
        (name,) = terms
        with pytest.raises(SpecError, match=f"{name} must be left out for a running endpoint"):
            open_endpoint(ServiceSpec(), address=f"http://{NOWHERE}/v1", **terms)  # type: ignore[arg-type]

    def test_telemetry_is_empty_and_says_so(self) -> None:
        with http_server(200, listing("tiny-llama-glossary")) as (server, _):
            endpoint = open_endpoint(ServiceSpec(), address=f"http://{server}/v1")
        samples: list[Any] = []
        messages: list[str] = []
        with Telemetry(endpoint, time.monotonic, samples.append, notify=messages.append):
            pass
        assert samples == []
        assert len(messages) == 1

    @pytest.mark.parametrize(
        ("status", "body", "error", "message"),
        [
            (200, b"<html>hello</html>", SettingError, "is not an OpenAI endpoint"),
            (200, b'{"data": 5}', SettingError, "is not an OpenAI endpoint"),
            (200, b"[]", SettingError, "is not an OpenAI endpoint"),
            (404, b"", SettingError, "check that the URL ends in /v1"),
            (401, b"", SettingError, "refuses the key"),
            (500, b"", EndpointGoneError, "HTTP 500"),
            (200, listing("a", "b"), SettingError, "serves a, b"),
        ],
    )
    def test_unusable_endpoint_is_refused(
        self, status: int, body: bytes, error: type[Exception], message: str
    ) -> None:
        with http_server(status, body) as (server, _), pytest.raises(error) as caught:
            open_endpoint(ServiceSpec(), address=f"http://{server}/v1", api_key=KEY)
        assert message in str(caught.value)
        assert f"http://{server}/v1" in str(caught.value)
        assert KEY not in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_closed_port_is_refused(self) -> None:
        with pytest.raises(EndpointGoneError, match="does not answer"):
            open_endpoint(ServiceSpec(), address=f"http://{NOWHERE}/v1")

    def test_password_in_the_url_is_refused_and_not_repeated(self) -> None:
        with pytest.raises(SettingError, match="LLM_WORKBENCH_API_KEY") as caught:
            open_endpoint(ServiceSpec(), address=f"https://user:{KEY}@host/v1")
        assert KEY not in str(caught.value)

    def test_baseline_and_rescaling_are_refused(self) -> None:
        with pytest.raises(SettingError, match="leave the baselines out"):
            open_endpoint(BaselineSpec(), address="https://host/v1")
        with http_server(200, listing("tiny-llama-glossary")) as (server, _):
            endpoint = open_endpoint(ServiceSpec(), address=f"http://{server}/v1")
        with pytest.raises(SettingError, match="max_replicas cannot be changed"):
            endpoint.rescale(max_replicas=2)

    def test_tenants_are_refused(self) -> None:
        with pytest.raises(SpecError, match="tenants must be left out"):
            open_endpoint(ServiceSpec(), address="https://host/v1", tenants=[Tenant(name="a")])


@contextmanager
def grpc_server(*services: str) -> Iterator[str]:
    """Run a real gRPC server with these methods only."""
    import grpc

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            if details.method not in services:
                return None
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")

    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


class TestClusterAddress:
    @pytest.fixture(autouse=True)
    def patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server in this process may be slow to answer."""
        monkeypatch.setattr(attach, "PROBE_S", 60.0)

    @pytest.mark.parametrize("kind", ["", "ray://"])
    def test_closed_port_is_refused_at_once(self, kind: str) -> None:
        started = time.monotonic()
        with pytest.raises(ClusterError, match="nothing answers there") as caught:
            attach.check_address(kind + NOWHERE)
        # Ray itself retries for minutes; this bound is generous for a refused connection.
        assert time.monotonic() - started < 30
        assert f"'{kind}{NOWHERE}'" in str(caught.value)

    @pytest.mark.parametrize("kind", ["", "ray://"])
    def test_web_server_is_refused(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(attach, "PROBE_S", 1.0)
        with (
            http_server(200, b"") as (server, _),
            pytest.raises(ClusterError, match="is not a Ray"),
        ):
            attach.check_address(kind + server)

    def test_the_other_kind_of_address_is_told_apart(self) -> None:
        with grpc_server(CLIENT_PROBE) as client:
            attach.check_address(f"ray://{client}")
            with pytest.raises(ClusterError, match=r"another service.*ray://host:10001"):
                attach.check_address(client)
        with grpc_server(GCS_PROBE) as control:
            attach.check_address(control)
            with pytest.raises(ClusterError, match=r"another service.*6379"):
                attach.check_address(f"ray://{control}")

    @pytest.mark.parametrize("address", ["ftp://h:1", "ray://h", "h:1/v1", "ray://http://h:1"])
    def test_malformed_address_is_refused(self, address: str) -> None:
        with pytest.raises(ClusterError) as caught:
            attach.check_address(address)
        assert repr(address) in str(caught.value)

    def test_auto_is_left_to_ray(self) -> None:
        attach.check_address("auto")

    def test_version_mismatch_is_reported_in_one_sentence(self) -> None:
        from ray._private.utils import check_version_info

        cluster = {"ray_version": "2.41.0", "python_version": "3.9.2"}
        with pytest.raises(RuntimeError) as ray:
            check_version_info(cluster, "Ray Client")
        message = attach.connect_error("ray://h:1", ray.value)
        assert "the cluster runs Ray 2.41.0 on Python 3.9.2 and this process Ray 2.60.0" in message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("cluster", "host"),
    [
        (Cluster("10.0.0.5:6379", attached_by="10.0.0.5:6379"), "10.0.0.5"),
        (Cluster("10.0.0.5:6379", attached_by="ray://head.example:10001"), "head.example"),
        (Cluster("10.0.0.5:6379", attached_by="auto"), "10.0.0.5"),
        (Cluster("[fd00::5]:6379", attached_by="ray://[fd00::7]:10001"), "fd00::7"),
    ],
)
def test_host_of_a_cluster(cluster: Cluster, host: str) -> None:
    assert cluster.host == host
