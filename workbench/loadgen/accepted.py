"""Find out which parameters an external server accepts, with a few small requests per route.

Servers reject parameters that others require: reasoning models want `max_completion_tokens`
instead of `max_tokens` and no `temperature`, and `ignore_eos` is an extension of vLLM. A measured
request is never repeated, so this is settled before the load starts.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from workbench.loadgen.client import make_body, rename
from workbench.loadgen.senders import is_chat

if TYPE_CHECKING:
    from workbench.endpoints.remote import Remote
    from workbench.workload.spec import LoadSpec

    Route = Literal["chat", "completion"]
    Names = Mapping[str, str | None]

REPLACEMENTS: dict[str, str | None] = {
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": None,
    "temperature": None,
    "ignore_eos": None,
    "stream_options": None,
}
"""The parameters that can be replaced, and by which; None leaves a parameter out."""

PROBE_PREFIX = "probe-"
"""Start of the request id of a probe."""
PROBE_TOKENS = 16
"""Output tokens of a probe: reasoning models reject fewer."""
PROBE_TIMEOUT_S = 30.0
_REJECTED = (400, 422)
_PATHS = {"chat": "chat/completions", "completion": "completions"}


@dataclass(frozen=True)
class Calls:
    """Arguments of `stream_chat` and `stream_completion` for one load, and messages to show."""

    chat: Mapping[str, Any] = field(default_factory=dict)
    completion: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def adapt_calls(target: Remote, load: LoadSpec, contents: Iterable[Any]) -> Calls:
    """Return the arguments with which `target` accepts the requests of `load`.

    `ignore_eos` is off for chats unless the load sets it or this process deployed the endpoint.

    Args:
        target: The endpoint. One that this process deployed is not asked.
        load: The load.
        contents: The contents of its prompts.
    """
    if target.ours:
        return Calls()
    calls: dict[str, dict[str, Any]] = {"chat": {}, "completion": {}}
    notes: list[str] = []
    for route in _routes(contents):
        explicit = "ignore_eos" in load.model_fields_set
        ignore_eos = load.ignore_eos and (explicit or route == "completion")
        renamed = _accepted(target, route, load.temperature, ignore_eos)
        calls[route] = {"ignore_eos": ignore_eos, "renamed": renamed}
        notes += [_describe(target, name, new) for name, new in renamed.items()]
    return Calls(calls["chat"], calls["completion"], tuple(dict.fromkeys(notes)))


def _routes(contents: Iterable[Any]) -> Iterator[Route]:
    found: set[str] = set()
    for content in contents:
        route: Route = "chat" if is_chat(content) else "completion"
        if route not in found:
            found.add(route)
            yield route
        if len(found) == len(_PATHS):
            return


def _describe(target: Remote, name: str, new: str | None) -> str:
    instead = "it is left out" if new is None else f"{new} is sent instead"
    if name == "stream_options" and new is None:
        instead += ", so token counts are missing"
    return f"{target.base_url} rejects {name}: {instead}"


def _accepted(target: Remote, route: Route, temperature: float, ignore_eos: bool) -> Names:
    """Return the new names of the parameters that the server rejects; asked once."""
    key = (route, target.model_id, temperature, ignore_eos)
    if key not in target.adapted:
        answer = _ask(target, route, temperature, ignore_eos)
        if answer is None:  # Nothing was learned: ask again before the next load.
            return {}
        target.adapted[key] = answer
    return target.adapted[key]


def _ask(target: Remote, route: Route, temperature: float, ignore_eos: bool) -> Names | None:
    """Send probes until one is accepted, or rejected for another reason.

    Returns:
        The new names; None if the server gave no usable answer.
    """
    prompt = {"messages": [{"role": "user", "content": "Hi"}]}
    content = prompt if route == "chat" else {"prompt": "Hi"}
    names: dict[str, str | None] = {}
    for _ in range(len(REPLACEMENTS) + 1):
        fields = make_body(
            target.model_id, PROBE_TOKENS, temperature, ignore_eos, target.extra_body
        )
        fields = rename(fields, names)
        body = content | fields | fields["extra_body"]
        body.pop("extra_body")
        rejected = _send(target, _PATHS[route], body)
        if rejected is None:
            return None
        own = [name for name in REPLACEMENTS if name in body and name not in target.extra_body]
        name = _named(rejected, own)
        if name is None:
            return names
        original = next((old for old, new in names.items() if new == name), name)
        names[original] = REPLACEMENTS[name]
    return names


def _send(target: Remote, path: str, body: Mapping[str, Any]) -> Any:
    """Send one probe, and return the body of a rejection, {} if accepted, None for anything else.

    An accepted stream is closed after its header, so that nothing more is generated.
    """
    import httpx2

    connection = target.connection
    headers = {**connection.request_headers(), "x-request-id": PROBE_PREFIX + secrets.token_hex(4)}
    url = f"{target.base_url}/{path}"
    try:
        with (
            httpx2.Client(**connection.client_options(), timeout=PROBE_TIMEOUT_S) as client,
            client.stream("POST", url, json=dict(body), headers=headers) as response,
        ):
            if response.status_code not in _REJECTED:
                return {} if response.status_code == 200 else None
            response.read()
            return response.json()
    except (httpx2.HTTPError, ValueError):
        return None


def _named(rejection: Any, names: list[str]) -> str | None:
    """Return the parameter that a rejection is about, or None.

    Its field is more certain than its text, which may suggest another parameter.
    """
    for text in _evidence(rejection):
        found = [name for name in names if re.search(rf"\b{name}\b", text)]
        if found:
            return min(found, key=lambda name: text.index(name))
    return None


def _evidence(rejection: Any) -> Iterator[str]:
    """Yield the parts of an error in the format of OpenAI or FastAPI that can name a parameter."""
    if not isinstance(rejection, Mapping):
        return
    error = rejection.get("error", rejection)
    error = error if isinstance(error, Mapping) else {"message": error}
    details = rejection.get("detail")
    details = details if isinstance(details, list) else [details]
    yield str(error.get("param") or "")
    for detail in details:
        if isinstance(detail, Mapping):
            yield " ".join(map(str, detail.get("loc") or ()))
    yield str(error.get("message") or "")
    for detail in details:
        yield str(detail.get("msg") if isinstance(detail, Mapping) else detail or "")
