"""What stands before the page: who may ask, for what, and what a browser may do with the answer. Plain ASGI, nothing else."""

import hmac
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any, final
from urllib.parse import parse_qs, urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]

COOKIE = "expunge_token"
LARGEST = 1_000_000
"""Bytes of a request's body: forms are small, and nothing is uploaded."""
GET = re.compile(
    r"/(|config|theme\.css|favicon\.ico|manifest\.json|(assets|static)/[\w.@/-]+|report/[\w./-]+"
    r"|gradio_api/(info|startup-events|theme\.css|app_id|queue/data|heartbeat/\w+))/?"
)
POST = re.compile(r"/gradio_api/(queue/join|cancel|reset)/?")
"""What the page itself asks for. Gradio has more, such as files and uploads, that it has no use for."""
PAGE_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; manifest-src 'self'; "
    "base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
"""A browser fetches from here alone, whatever a script asks for."""
REPORT_POLICY = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""A report is a page of its own: it shares nothing with this one, and fetches nothing."""


@final
class Guard:
    """Lets through what the page needs, from those who may have it."""

    def __init__(self, app: App, token: str, hosts: frozenset[str]) -> None:
        """Stand before ``app``; an empty ``token`` asks for none, and no ``hosts`` stand for any."""
        self._app, self._token, self._hosts = app, token, hosts

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer a request, or have it answered."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            elif scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        status, why = self._refusal(scope, headers, query)
        if status:
            await _answer(send, status, why)
        elif self._token and "token" in query:
            cookie = f"{_cookie(headers)}={self._token}; HttpOnly; SameSite=Lax; Path=/"
            await _answer(send, 303, "", [("location", "./"), ("set-cookie", cookie)])
        else:
            await self._app(scope, receive, _with_headers(send, scope["path"]))

    def _refusal(self, scope: Any, headers: Mapping[str, str], query: Mapping[str, list[str]]) -> tuple[int, str]:
        """Why a request is not answered: a status and a line; 0 if it is."""
        host = headers.get("host", "")
        if self._hosts and _name(host) not in self._hosts:
            return 421, f"no page of this name: expected one of {', '.join(sorted(self._hosts))}"
        if not self._may(headers, query):
            return 401, "this page needs its token: open the address that `expunge serve` printed"
        pattern = {"GET": GET, "HEAD": GET, "POST": POST}.get(scope["method"])
        path = scope["path"]
        if pattern is None or not pattern.fullmatch(path) or ".." in path or "//" in path:
            return 404, "nothing is here"
        if scope["method"] == "POST":
            return _foreign(headers, host) or _too_large(headers) or (0, "")
        return 0, ""

    def _may(self, headers: Mapping[str, str], query: Mapping[str, list[str]]) -> bool:
        """Whether somebody knows the token."""
        if not self._token:
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(_cookie(headers))
        except CookieError:
            cookie = None
        given = [*query.get("token", []), *([] if cookie is None else [cookie.value])]
        return any(hmac.compare_digest(one.encode(), self._token.encode()) for one in given)


def _cookie(headers: Mapping[str, str]) -> str:
    """The name of the cookie: with the port, which browsers do not tell cookies apart by."""
    port = re.search(r":(\d{1,5})$", headers.get("host", ""))
    return COOKIE if port is None else f"{COOKIE}_{port[1]}"


def _foreign(headers: Mapping[str, str], host: str) -> tuple[int, str] | None:
    """Refuse what another site's page sends."""
    origin = headers.get("origin")
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return 403, "another site's page asked: expected this one's"
    if origin is not None and urlsplit(origin).netloc != host:
        return 403, "another site's page asked: expected this one's"
    return None


def _too_large(headers: Mapping[str, str]) -> tuple[int, str] | None:
    """Refuse a body that does not say its length, or is longer than a form."""
    length = headers.get("content-length", "")
    if not length.isdecimal():
        return 411, "a body of unknown length: expected it to be said"
    if int(length) > LARGEST:
        return 413, f"a body of {length[:20]} bytes: expected at most {LARGEST:,}"
    return None


def _name(host: str) -> str:
    """A host without its port."""
    return (urlsplit(f"//{host}").hostname or "") if re.fullmatch(r"[\w.:\[\]-]*", host) else ""


def _with_headers(send: Send, path: str) -> Send:
    """Say with each answer what a browser may do with it."""
    policy = REPORT_POLICY if path.startswith("/report/") else PAGE_POLICY
    ours = [
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cross-origin-resource-policy", b"same-origin"),
    ]

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [(k, v) for k, v in message.get("headers", []) if not k.lower().startswith(b"access-control-")]
            message = {**message, "headers": [*kept, *ours]}
        await send(message)

    return sent


async def _answer(send: Send, status: int, line: str, headers: list[tuple[str, str]] | None = None) -> None:
    """Answer with a line of text."""
    body = (line + "\n").encode() if line else b""
    said = [("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(body))), *(headers or [])]
    coded = [(key.encode(), value.encode("latin-1")) for key, value in [*said, ("cache-control", "no-store")]]
    await send({"type": "http.response.start", "status": status, "headers": coded})
    await send({"type": "http.response.body", "body": body})
