"""Endpoints of others: TLS, proxies, redirects and headers, against scripted servers' own logs."""

from __future__ import annotations

import asyncio
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support import scripted_server as scripted
from support.proxy import ScriptedProxy, scripted_proxy
from support.scripted_server import ScriptedServer, tokens
from support.tls import self_signed

from serving.errors import EndpointGoneError
from workbench.endpoints.connection import make_connection
from workbench.endpoints.proxies import bypasses_proxy, environment_proxy
from workbench.endpoints.remote import Remote, remote
from workbench.errors import SettingError
from workbench.loadgen.client import stream_chat
from workbench.loadgen.senders import WorkerConfig
from workbench.loadgen.worker import LoadWorker
from workbench.records import RequestRecord
from workbench.workload.prompt import Prompt
from workbench.workload.spec import Arrival

KEY = "sk-a-key-of-enough-length"
PASSWORD = "hush-hush"
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
CHAT = Prompt(({"role": "user", "content": "Hello"},), 1, 3)


@pytest.fixture(autouse=True)
def no_proxy_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted.threaded(tokens(3)) as server:
        server.models = ["m"]
        yield server


@pytest.fixture
def proxy() -> Iterator[ScriptedProxy]:
    with scripted_proxy() as proxy:
        yield proxy


def send_chat(endpoint: Remote) -> RequestRecord:
    """Send one chat as a load worker does, with the endpoint's connection after a pickle."""

    async def go() -> RequestRecord:
        worker = LoadWorker()
        await worker.connect(pickle.loads(pickle.dumps(endpoint.connection)))
        config = WorkerConfig(model="m", call={}, tag="t", epoch_s=time.perf_counter(), start_s=0)
        await worker.start(config, [(0, Arrival(0.0, (CHAT,)))])
        while not (report := await worker.report()).records:
            await asyncio.sleep(0.01)
        return report.records[0]

    return asyncio.run(go())


def ask(endpoint: Remote) -> str:
    """Send one chat with the endpoint's asynchronous client; return what failed, or ''."""

    async def go() -> str:
        record = await stream_chat(
            endpoint.async_client,
            model="m",
            messages="Hello",
            max_tokens=3,
            clock=time.perf_counter,
            connection=endpoint.connection,
        )
        return record.error or ""

    return asyncio.run(go())


class TestTls:
    def test_self_signed_certificate_is_named_and_then_trusted(self, tmp_path: Path) -> None:
        tls, pem = self_signed(tmp_path)
        with scripted.threaded(tokens(3), tls=tls) as server:
            server.models = ["m"]
            with pytest.raises(SettingError, match=r"certificate is not trusted.*ca_bundle"):
                remote(server.base_url, api_key=KEY)
            for trust in ({"ca_bundle": pem}, {"verify": False}):
                endpoint = remote(server.base_url, api_key=KEY, **trust)
                assert endpoint.client.models.list().data[0].id == "m"
                assert ask(endpoint) == ""
                assert send_chat(endpoint).status == "ok"
            assert len(server.log) == 4

    def test_load_reports_the_certificate(self, tmp_path: Path) -> None:
        tls, _ = self_signed(tmp_path)
        with scripted.threaded(tokens(3), tls=tls) as server:
            there = make_connection(server.base_url, KEY)
            record = send_chat(Remote(there.base_url, there.api_key, ["m"], "m"))
        assert record.status == "error"
        assert (record.error or "").startswith("connection failed: TLS: the certificate is not")

    def test_certificate_of_another_host(self, tmp_path: Path) -> None:
        tls, pem = self_signed(tmp_path, "192.0.2.1")
        with (
            scripted.threaded(tokens(3), tls=tls) as server,
            pytest.raises(SettingError, match="the host name that the certificate has"),
        ):
            remote(server.base_url, ca_bundle=pem)

    def test_server_without_tls(self) -> None:
        with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as plain:
            threading.Thread(target=plain.serve_forever, args=(0.01,), daemon=True).start()
            with pytest.raises(SettingError, match="without TLS"):
                remote(f"https://127.0.0.1:{plain.server_address[1]}/v1")
            plain.shutdown()


class TestProxy:
    def test_this_machine_bypasses_the_proxy_of_the_environment(
        self, server: ScriptedServer, proxy: ScriptedProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", proxy.url)
        endpoint = remote(server.base_url, api_key=KEY)
        assert endpoint.answers()
        assert endpoint.client.models.list().data[0].id == "m"
        assert ask(endpoint) == ""
        assert send_chat(endpoint).status == "ok"
        assert proxy.log == []
        assert len(server.log) == 2

    def test_given_proxy_is_used_by_every_client(
        self, server: ScriptedServer, proxy: ScriptedProxy
    ) -> None:
        endpoint = remote(server.base_url, api_key=KEY, proxy=proxy.url)
        endpoint.client.models.list()
        assert ask(endpoint) == ""
        assert send_chat(endpoint).status == "ok"
        root = server.base_url
        assert proxy.log == [f"GET {root}/models"] * 2 + [f"POST {root}/chat/completions"] * 2

    def test_tunnel_with_a_password(self, tmp_path: Path) -> None:
        tls, pem = self_signed(tmp_path)
        with (
            scripted.threaded(tokens(3), tls=tls) as server,
            scripted_proxy(user=f"ada:{PASSWORD}") as proxy,
        ):
            server.models = ["m"]
            endpoint = remote(server.base_url, ca_bundle=pem, proxy=proxy.url)
            assert send_chat(endpoint).status == "ok"
            assert set(proxy.log) == {f"CONNECT 127.0.0.1:{server.port}"}
            assert set(proxy.credentials) == {f"ada:{PASSWORD}"}
            without = proxy.url.replace(f"ada:{PASSWORD}@", "")
            with pytest.raises(SettingError, match=f"proxy {without} .*407.*USER:PASSWORD"):
                remote(server.base_url, ca_bundle=pem, proxy=without)
            there = make_connection(server.base_url, KEY, verify=False, proxy=without)
            record = send_chat(Remote(there.base_url, there.api_key, ["m"], "m", connection=there))
            assert f"proxy {without} refused the connection with HTTP 407" in (record.error or "")

    @pytest.mark.parametrize("status", [403, 502, 503])
    def test_answer_of_the_proxy_is_no_answer_of_the_server(
        self, status: int, server: ScriptedServer
    ) -> None:
        with scripted_proxy(refuse=status) as proxy:
            with pytest.raises(SettingError, match=rf"proxy {proxy.url} answered HTTP {status}"):
                remote(server.base_url, proxy=proxy.url)
            there = make_connection(server.base_url, KEY, proxy=proxy.url)
            endpoint = Remote(there.base_url, there.api_key, ["m"], "m", connection=there)
            record = send_chat(endpoint)
        assert record.status == "error", "a proxy's 503 is not the server's refusal"
        assert f"proxy {proxy.url} answered HTTP {status}" in (record.error or "")
        assert server.log == []

    def test_missing_password_without_a_tunnel(self, server: ScriptedServer) -> None:
        with scripted_proxy(user=f"ada:{PASSWORD}") as proxy:
            assert remote(server.base_url, model="m", proxy=proxy.url).model_id == "m"
            without = proxy.url.replace(f"ada:{PASSWORD}@", "")
            with pytest.raises(SettingError, match=f"proxy {without} requires a password"):
                remote(server.base_url, model="m", proxy=without)

    def test_closed_port_of_the_proxy(self, server: ScriptedServer) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        url = f"http://ada:{PASSWORD}@127.0.0.1:{port}"
        with pytest.raises(
            SettingError, match=f"proxy http://127.0.0.1:{port} cannot be"
        ) as caught:
            remote(server.base_url, proxy=url)
        assert PASSWORD not in str(caught.value)
        there = make_connection(server.base_url, KEY, proxy=url)
        record = send_chat(Remote(there.base_url, there.api_key, ["m"], "m", connection=there))
        assert "cannot be reached" in (record.error or "")
        assert PASSWORD not in repr(there) + (record.error or "")

    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("http://127.8.0.1:8000/v1", True),
            ("http://[::1]:8000/v1", True),
            ("http://localhost/v1", True),
            ("http://llm.default.svc:8000/v1", True),
            ("http://llm.default.svc.cluster.local/v1", True),
            ("http://localhost.example.org/v1", False),
            ("https://api.example.org/v1", False),
        ],
    )
    def test_addresses_that_bypass_the_proxy(self, url: str, expected: bool) -> None:
        assert bypasses_proxy(url) is expected

    @pytest.mark.parametrize(
        ("url", "no_proxy", "used"),
        [
            ("https://api.example.org/v1", "", True),
            ("https://api.example.org/v1", "example.org", False),
            ("https://api.example.org/v1", ".example.com, 10.0.0.0/8", True),
            ("https://10.1.2.3/v1", "10.0.0.0/8", False),
            ("https://10.1.2.3/v1", "*", False),
            ("https://api.example.org:8443/v1", "api.example.org:8443", False),
            ("ftp://api.example.org/v1", "", False),
        ],
    )
    def test_proxy_of_the_environment(
        self, url: str, no_proxy: str, used: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("https_proxy", "proxy.example.org:3128")
        monkeypatch.setenv("no_proxy", no_proxy)
        assert environment_proxy(url) == ("http://proxy.example.org:3128" if used else None)


class TestAnswers:
    def test_redirect_is_reported_with_its_target(self, server: ScriptedServer) -> None:
        place = f"https://ada:{PASSWORD}@login.example.org/sso?token={PASSWORD}"
        redirect = scripted.Script(status=302, headers=(("location", place),))
        with scripted.threaded(redirect) as redirecting:
            there = make_connection(redirecting.base_url, KEY)
            record = send_chat(Remote(there.base_url, there.api_key, ["m"], "m"))
            assert len(redirecting.log) == 1
        assert record.status == "error"
        expected = "redirect: HTTP 302 to https://login.example.org/sso; give the final URL"
        assert record.error == expected

    def test_headers_are_added_and_redacted(self, server: ScriptedServer) -> None:
        secret = "a-subscription-key"
        seen: list[dict[str, str]] = []

        class Recording(scripted.ScriptedServer):
            async def _connected(self, reader: Any, writer: Any) -> None:
                original = reader.readuntil

                async def readuntil(mark: bytes) -> bytes:
                    head: bytes = await original(mark)
                    lines = head.decode().split("\r\n")[1:]
                    seen.append(
                        {
                            n.lower(): v.strip()
                            for n, _, v in (line.partition(":") for line in lines)
                        }
                    )
                    return head

                reader.readuntil = readuntil
                await super()._connected(reader, writer)

        async def go() -> RequestRecord:
            failing = scripted.error(401, f"wrong subscription {secret}")
            async with Recording(failing) as server:
                there = make_connection(server.base_url, KEY, headers={"x-api-key": secret})
                endpoint = Remote(there.base_url, there.api_key, ["m"], "m", connection=there)
                return await stream_chat(
                    endpoint.async_client,
                    model="m",
                    messages="Hello",
                    max_tokens=3,
                    clock=time.perf_counter,
                    connection=there,
                )

        record = asyncio.run(go())
        assert [head["x-api-key"] for head in seen] == [secret]
        assert seen[0]["authorization"] == f"Bearer {KEY}"
        assert "wrong subscription [key]" in (record.error or "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"verify": "ca.pem"}, "verify must be True or False, got 'ca.pem'; give a file"),
        ({"verify": False, "ca_bundle": "ca.pem"}, "has no effect with verify=False"),
        ({"ca_bundle": "/nowhere/ca.pem"}, "got '/nowhere/ca.pem'"),
        ({"proxy": "proxy.example.org:3128"}, "proxy must be a URL such as"),
        ({"proxy": True}, "proxy must be a URL such as"),
        ({"proxy": f"socks5://ada:{PASSWORD}@host:1"}, "got 'socks5://host:1'"),
        ({"headers": {"x-key": "a\r\nb"}}, "remove line ends"),
    ],
)
def test_invalid_settings_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        remote("http://127.0.0.1:9/v1", **options)
    assert message in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_file_without_certificates(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("no certificate")
    with pytest.raises(SettingError, match="PEM file with certificates"):
        remote("http://127.0.0.1:9/v1", ca_bundle=tmp_path / "empty.pem")


def test_closed_port_is_still_a_missing_endpoint() -> None:
    with pytest.raises(EndpointGoneError, match="does not answer"):
        remote("http://127.0.0.1:9/v1")
