"""How an endpoint is reached: its URL and key, TLS, the proxy, and further headers.

A `Connection` is data that load workers on other machines receive. Therefore the proxy of the
environment and the certificates are read once, where the connection is made.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import SecretStr

from workbench.endpoints.proxies import bypasses_proxy, environment_proxy
from workbench.errors import SettingError

NO_KEY = "none"
"""The key that is sent where none was given, because the OpenAI client requires one."""

_HIDDEN_HEADERS = ("auth", "key", "secret", "token", "cookie", "password")


@dataclass(frozen=True)
class Connection:
    """How an endpoint is reached.

    Attributes:
        base_url: URL of the endpoint, up to its `/v1`.
        api_key: The key.
        verify: Whether the server's certificate is checked.
        ca_pem: Certificates that are trusted instead of the system's, as PEM text.
        proxy: URL of the proxy, with a user and a password if it requires them.
        headers: Headers that are added to every request.
    """

    base_url: str
    api_key: SecretStr
    verify: bool = True
    ca_pem: str | None = field(default=None, repr=False)
    proxy: SecretStr | None = None
    headers: Mapping[str, SecretStr] = field(default_factory=dict)

    def client_options(self) -> dict[str, Any]:
        """Return arguments for a client of httpx2, or of the OpenAI package's HTTP clients.

        Redirects are not followed: they would change a measured POST, or its latency, unnoticed.
        """
        return {
            "verify": self._ssl_context(),
            "proxy": self.proxy and self.proxy.get_secret_value(),
            "trust_env": False,
            "follow_redirects": False,
        }

    def openai_options(self) -> dict[str, Any]:
        """Return arguments for a client of the OpenAI package, without its HTTP client."""
        return {
            "base_url": self.base_url,
            "api_key": self.api_key.get_secret_value(),
            "default_headers": self.plain_headers(),
        }

    def plain_headers(self) -> dict[str, str]:
        """Return the further headers as text."""
        return {name: value.get_secret_value() for name, value in self.headers.items()}

    def request_headers(self) -> dict[str, str]:
        """Return all headers of a request that no OpenAI client sends."""
        return {
            "Authorization": f"Bearer {self.api_key.get_secret_value()}",
            **self.plain_headers(),
        }

    @property
    def proxy_name(self) -> str | None:
        """The proxy's URL without user and password, for messages; None without a proxy."""
        if self.proxy is None:
            return None
        parts = urlsplit(self.proxy.get_secret_value())
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    def secrets(self) -> Iterator[str]:
        """Yield everything that no message may contain."""
        yield self.api_key.get_secret_value()
        for name, value in self.headers.items():
            if any(word in name.lower() for word in _HIDDEN_HEADERS):
                yield value.get_secret_value()
        if self.proxy and (password := urlsplit(self.proxy.get_secret_value()).password):
            yield password

    def _ssl_context(self) -> ssl.SSLContext:
        import httpx2

        if self.verify and self.ca_pem is not None:
            return ssl.create_default_context(cadata=self.ca_pem)
        return httpx2.create_ssl_context(verify=self.verify)


def make_connection(
    base_url: str,
    api_key: str,
    *,
    verify: bool = True,
    ca_bundle: str | Path | None = None,
    proxy: str | bool | None = None,
    headers: Mapping[str, str] | None = None,
) -> Connection:
    """Return a connection, with the environment's proxy where it applies.

    Args:
        base_url: URL of the endpoint, up to its `/v1`.
        api_key: The key.
        verify: Whether to check the server's certificate.
        ca_bundle: PEM file with the certificates to trust instead of the system's.
        proxy: URL of a proxy; False: none; default: `http_proxy`, `https_proxy` and `no_proxy` of
            the environment, which do not apply to this machine and to the cluster.
        headers: Headers to add to every request.

    Raises:
        SettingError: A value is invalid.
    """
    if not isinstance(verify, bool):
        raise SettingError(
            f"verify must be True or False, got {verify!r}; give a file as ca_bundle"
        )
    if not verify and ca_bundle is not None:
        raise SettingError(
            f"ca_bundle = {str(ca_bundle)!r} has no effect with verify=False; leave one of them out"
        )
    hidden = {name: SecretStr(_header(name, value)) for name, value in (headers or {}).items()}
    chosen = _proxy(base_url, proxy)
    return Connection(
        base_url=base_url,
        api_key=SecretStr(api_key),
        verify=verify,
        ca_pem=None if ca_bundle is None else _read_certificates(Path(ca_bundle)),
        proxy=None if chosen is None else SecretStr(chosen),
        headers=hidden,
    )


def _proxy(base_url: str, proxy: str | bool | None) -> str | None:
    if proxy is False:
        return None
    if proxy is None:
        return None if bypasses_proxy(base_url) else environment_proxy(base_url)
    parts = urlsplit(str(proxy))
    if proxy is True or parts.scheme not in ("http", "https") or not parts.hostname:
        given = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else proxy
        raise SettingError(
            "proxy must be a URL such as 'http://proxy.example.org:3128', or False for none, got "
            f"{given!r}"
        )
    return str(proxy)


def _header(name: str, value: str) -> str:
    if not isinstance(value, str) or not value.isprintable() or not value.isascii():
        raise SettingError(
            f"headers[{name!r}] must be a printable ASCII text, got a {type(value).__name__}; "
            "remove line ends and other control characters"
        )
    return value


def _read_certificates(path: Path) -> str:
    try:
        text = path.expanduser().read_text(encoding="ascii")
        ssl.create_default_context(cadata=text)
    except (OSError, ValueError, ssl.SSLError) as problem:
        missing = isinstance(problem, OSError) and not isinstance(problem, ssl.SSLError)
        reason = getattr(problem, "strerror", None) if missing else "no valid certificate in it"
        raise SettingError(
            f"ca_bundle must be a PEM file with certificates, got {str(path)!r} ({reason})"
        ) from None
    return text
