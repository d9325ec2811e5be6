"""Explain why an endpoint could not be reached: TLS, a proxy, or a redirect."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

_HOST_MISMATCH, _IP_MISMATCH = 62, 64
"""OpenSSL's `X509_V_ERR_HOSTNAME_MISMATCH` and `X509_V_ERR_IP_ADDRESS_MISMATCH`."""


def explain_failure(problem: BaseException, proxy: str | None) -> str | None:
    """Return the reason why no connection was made, if TLS or the proxy is the reason.

    Args:
        problem: The exception of a client of httpx2, aiohttp or the OpenAI package.
        proxy: The proxy's URL without a password; None without a proxy.

    Returns:
        The reason and the fix, or None.
    """
    causes = list(_causes(problem))
    for cause in causes:
        # aiohttp's own error of this class has no code; the one behind it has.
        if isinstance(cause, ssl.SSLCertVerificationError) and hasattr(cause, "verify_code"):
            return _explain_certificate(cause)
        if proxy and (reason := _explain_proxy(cause, proxy)):
            return reason
    if any(_is_tls(cause) for cause in causes):
        detail = next(str(cause) for cause in causes if _is_tls(cause))
        if "WRONG_VERSION_NUMBER" in detail or "record layer failure" in detail.lower():
            return "TLS: the server answers without TLS; give a URL that starts with http://"
        return f"TLS: the handshake failed ({detail})"
    refused = any(isinstance(cause, OSError) for cause in causes)
    return f"proxy {proxy} cannot be reached; {_PROXY_FIX}" if proxy and refused else None


def explain_answer(status: int, headers: Mapping[str, str], proxy: str | None) -> str | None:
    """Return what an HTTP answer means if it is a redirect or probably the proxy's, else None.

    Args:
        status: The HTTP status.
        headers: The headers of the answer.
        proxy: The proxy's URL without a password; None without a proxy.
    """
    if 300 <= status < 400:
        location = headers.get("location", "")
        return f"redirect: HTTP {status} to {_without_secrets(location)}; give the final URL"
    if status == 407:
        return f"proxy {proxy or ''} requires a password (HTTP 407); {_PASSWORD_FIX}"
    kind = headers.get("content-type", "").partition(";")[0].strip()
    if proxy and status >= 400 and kind.startswith("text/"):
        return f"proxy {proxy} answered HTTP {status} ({kind}) instead of the server; {_PROXY_FIX}"
    return None


_PASSWORD_FIX = "give proxy='http://USER:PASSWORD@HOST:PORT'"
_PROXY_FIX = "give another proxy, or proxy=False for none"


def _causes(problem: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = problem
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _is_tls(cause: BaseException) -> bool:
    return isinstance(cause, ssl.SSLError) or "SSLError" in type(cause).__name__


def _explain_certificate(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in (_HOST_MISMATCH, _IP_MISMATCH):
        return f"TLS: {error.verify_message}; give the host name that the certificate has"
    return (
        f"TLS: the certificate is not trusted ({error.verify_message}); give ca_bundle='FILE.pem' "
        "with its issuer, or verify=False"
    )


def _explain_proxy(cause: BaseException, proxy: str) -> str | None:
    """Explain an answer to CONNECT: aiohttp gives its status, httpx2 only the text."""
    kind, text = type(cause).__name__, str(cause)
    status = getattr(cause, "status", None) if kind == "ClientHttpProxyError" else None
    if status is None and kind == "ProxyError" and text[:3].isdigit():
        status = int(text[:3])
    if status is None:
        return None
    fix = _PASSWORD_FIX if status == 407 else _PROXY_FIX
    return f"proxy {proxy} refused the connection with HTTP {status}; {fix}"


def _without_secrets(url: str) -> str:
    """Return a URL without its user, password and query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
